//! The manual of connector options, made from the typed structs that parse them.

use std::fmt::Write;
use weir_engine::connector::{Connectors, ENGINE_SOURCE_OPTIONS, OptionDoc};

/// All connectors and options as Markdown.
pub fn markdown(connectors: &Connectors) -> String {
    let mut text = String::from("# Connector options\n\nMade by `weir manual`.\n");
    for connector in connectors.iter() {
        let _ = write!(text, "\n## {}\n\n", connector.name());
        table(&mut text, &connector.options());
        let metadata = connector.metadata();
        if !metadata.is_empty() {
            text.push_str("\nMETADATA columns: ");
            let names: Vec<String> =
                metadata.iter().map(|(name, kind)| format!("`{name}` ({kind})")).collect();
            text.push_str(&names.join(", "));
            text.push_str(".\n");
        }
    }
    text.push_str("\n## Every source\n\n");
    table(&mut text, &ENGINE_SOURCE_OPTIONS);
    text
}

fn table(text: &mut String, options: &[OptionDoc]) {
    text.push_str("| option | type | default | meaning |\n|---|---|---|---|\n");
    for option in options {
        let default = option.default.unwrap_or("required");
        let doc = option.doc.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            text,
            "| `{}` | {} | {default} | {} |",
            option.key,
            option.kind.replace('|', "\\|"),
            doc.replace('|', "\\|")
        );
    }
}
