//! Where a table's address stands in its script, so that a failure of the world can point at it.

use crate::ast::Statement;
use crate::diagnostics::Span;
use crate::parse::parse_script;

/// Options that say where a table is, the most telling first.
const ADDRESSES: [&str; 4] = ["path", "properties.bootstrap.servers", "url", "connector"];

/// The place of a declared table's address, or of its name if it has none.
pub fn address_of(text: &str, table: &str) -> Option<Span> {
    let declared = parse_script(text).statements.into_iter().find_map(|s| match s {
        Statement::CreateTable(t) if t.name.text == table => Some(t),
        _ => None,
    })?;
    let value = |key: &&str| declared.options.iter().find(|(k, _)| k.text == *key);
    let found = ADDRESSES.iter().find_map(value);
    Some(found.map_or(declared.name.span, |(_, value)| value.span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_the_address() {
        let text = "CREATE TABLE a (x INT)\nWITH ('connector' = 'print');\n\
                    CREATE TABLE b (x INT) WITH ('connector' = 'c',\n 'url' = 'mqtt://h');";
        let place = |table| address_of(text, table).map(|s| (s.line, s.column));
        assert_eq!(place("b"), Some((4, 10)));
        assert_eq!(place("a"), Some((2, 21)));
        assert_eq!(place("c"), None);
    }
}
