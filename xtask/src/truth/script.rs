//! SQL scripts with places to fill in.
//!
//! `${NAME}` is a variable, `${INCLUDE name}` another script of the folder (`name.<route>.sql`
//! before `name.sql`), and `${SINK table}` the options of the table that a result goes to. Anything
//! else in braces is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const INCLUDES_NESTED_MAX: usize = 4;

/// What the places of a script are filled with.
pub(crate) struct Filling<'a> {
    /// The folder of the scripts.
    pub(crate) folder: &'a Path,
    /// The part of a file name that tells variants apart.
    pub(crate) route: &'a str,
    pub(crate) variables: BTreeMap<&'static str, String>,
    /// The WITH options of a result table.
    pub(crate) sink: &'a dyn Fn(&str) -> String,
}

impl Filling<'_> {
    /// The script `name.sql`, filled in.
    pub(crate) fn script(&self, name: &str) -> Result<String> {
        self.nested(name, 0)
    }

    fn nested(&self, name: &str, depth: usize) -> Result<String> {
        if depth > INCLUDES_NESTED_MAX {
            bail!("scripts include one another");
        }
        let variant = self.folder.join(format!("{name}.{}.sql", self.route));
        let plain = self.folder.join(format!("{name}.sql"));
        let path = if variant.exists() { variant } else { plain };
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        self.fill(&text, depth).with_context(|| path.display().to_string())
    }

    fn fill(&self, text: &str, depth: usize) -> Result<String> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let (place, after) = after.split_once('}').context("a `${` without its `}`")?;
            match place.split_once(' ') {
                Some(("INCLUDE", name)) => filled.push_str(&self.nested(name, depth + 1)?),
                Some(("SINK", table)) => filled.push_str(&(self.sink)(table)),
                _ => match self.variables.get(place) {
                    Some(value) => filled.push_str(value),
                    None => bail!("nothing to put for ${{{place}}}"),
                },
            }
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<String> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("a.sql"), text)?;
        fs::write(folder.path().join("b.sql"), "plain")?;
        fs::write(folder.path().join("b.kafka.sql"), "kafka ${X}")?;
        fs::write(folder.path().join("loop.sql"), "${INCLUDE loop}")?;
        let sink = |table: &str| format!("'path' = '{table}'");
        let variables = BTreeMap::from([("X", "1".to_owned())]);
        Filling { folder: folder.path(), route: "kafka", variables, sink: &sink }.script("a")
    }

    #[test]
    fn places_are_filled() -> Result<()> {
        assert_eq!(
            fill("${INCLUDE b} WITH (${SINK t}) $ {X}")?,
            "kafka 1 WITH ('path' = 't') $ {X}"
        );
        Ok(())
    }

    #[test]
    fn what_cannot_be_filled_is_an_error() {
        for text in ["${Y}", "${X", "${INCLUDE c}", "${INCLUDE loop}", "${SINC t}"] {
            assert!(fill(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_script_of_the_repository_can_be_filled() -> Result<()> {
        let folder = crate::places::root().join("scenarios/truth");
        let names = ["DATA", "LINES", "OUT", "TOPIC", "KAFKA", "MQTT", "COPIES"];
        let variables: BTreeMap<_, _> = names.map(|name| (name, "x".to_owned())).into();
        for route in super::super::Route::ALL {
            for job in super::super::JOBS {
                let (mut variables, sink) =
                    (variables.clone(), |_: &str| "'connector' = 'x'".to_owned());
                variables.extend(job.duplicates());
                let filling =
                    Filling { folder: &folder, route: route.name(), variables, sink: &sink };
                assert!(filling.script(job.script)?.contains("INSERT INTO"));
            }
        }
        Ok(())
    }
}
