//! The words after a command: flags, options with a value, and plain words.

use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Result, bail};

/// The words that nobody has asked for yet.
///
/// Each question takes its answer out, so that [`Args::finish`] can refuse what is left: a mistyped
/// option is an error, never ignored.
pub(crate) struct Args {
    words: Vec<String>,
}

impl Args {
    /// Takes the words after the command's name.
    pub(crate) fn new(words: impl IntoIterator<Item = String>) -> Self {
        Args { words: words.into_iter().collect() }
    }

    /// Whether a flag such as `--quick` is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|word| word != name);
        self.words.len() < before
    }

    /// The value of an option: `--seed 7` or `--seed=7`.
    pub(crate) fn option<T>(&mut self, name: &str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        let prefix = format!("{name}=");
        let Some(at) = self.words.iter().position(|w| w == name || w.starts_with(&prefix)) else {
            return Ok(None);
        };
        let word = self.words.remove(at);
        let value = match word.strip_prefix(&prefix) {
            Some(value) => value.to_owned(),
            None if at < self.words.len() => self.words.remove(at),
            None => bail!("{name} needs a value"),
        };
        match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => bail!("{name} cannot be `{value}`: {error}"),
        }
    }

    /// The plain words, in order.
    pub(crate) fn words(&mut self) -> Vec<String> {
        let (options, words) = self.words.drain(..).partition(|word| word.starts_with('-'));
        self.words = options;
        words
    }

    /// Refuses what nobody asked for.
    pub(crate) fn finish(self) -> Result<()> {
        match self.words.first() {
            Some(word) => bail!("`{word}` is not understood here"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_options_and_words_in_any_order() -> Result<()> {
        let mut a = args("kafka --seed 7 --quick --meters=300 s3");
        assert!(a.flag("--quick"));
        assert_eq!(a.option::<u64>("--seed")?, Some(7));
        assert_eq!(a.option::<u64>("--meters")?, Some(300));
        assert_eq!(a.option::<u64>("--minutes")?, None);
        assert_eq!(a.words(), ["kafka", "s3"]);
        a.finish()
    }

    #[test]
    fn what_is_left_over_is_refused() {
        assert!(args("--sed 7").finish().is_err());
        assert!(args("--seed").option::<u64>("--seed").is_err());
        assert!(args("--seed x").option::<u64>("--seed").is_err());
    }
}
