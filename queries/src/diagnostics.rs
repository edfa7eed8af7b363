//! Errors with a place in the script: what is wrong, where, why, and what to do.
//!
//! Lines of the script are quoted with secrets masked: the value of an option whose name says that
//! it is a password, and `user:password@` in URLs.

use std::fmt;

/// A stretch of the script. Lines and columns count from 1; a column is a code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Line of the first character.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Line behind the last character.
    pub end_line: usize,
    /// Column behind the last character.
    pub end_column: usize,
}

impl Span {
    /// The script's first character, for what has no place of its own.
    pub const START: Span = Span { line: 1, column: 1, end_line: 1, end_column: 2 };

    /// From the beginning of this to the end of the other.
    #[must_use]
    pub fn to(self, other: Span) -> Span {
        Span { end_line: other.end_line, end_column: other.end_column, ..self }
    }
}

/// One error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What stands beside the caret.
    pub label: Option<Box<str>>,
    /// Why, if that isn't plain.
    pub detail: Option<Box<str>>,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn new(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic { message: message.into(), span, label: None, detail: None, hint: None }
    }

    /// With what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }

    /// With the reason.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Diagnostic {
        self.detail = Some(detail.into().into_boxed_str());
        self
    }

    /// With the word that was probably meant, if there is one.
    #[must_use]
    pub fn meant<'a>(
        mut self,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Diagnostic {
        if let Some(nearest) = nearest(word, candidates) {
            self.label = Some(format!("did you mean `{nearest}`?").into());
        }
        self
    }
}

/// All errors of a script, in the order of their places.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    /// The script's name, as printed.
    pub file_name: String,
    /// The errors.
    pub errors: Vec<Diagnostic>,
    lines: Vec<String>,
}

impl Diagnostics {
    /// Errors of a script with this text.
    pub fn new(file_name: &str, text: &str, mut errors: Vec<Diagnostic>) -> Diagnostics {
        errors.sort_by_key(|e| e.span);
        errors.dedup();
        let lines = masked(text).lines().map(str::to_owned).collect();
        Diagnostics { file_name: file_name.to_owned(), errors, lines }
    }

    fn quote(&self, f: &mut fmt::Formatter<'_>, error: &Diagnostic) -> fmt::Result {
        let Span { line, column, end_line, end_column } = error.span;
        let Some(text) = self.lines.get(line.wrapping_sub(1)) else { return Ok(()) };
        let number = line.to_string();
        let blank = " ".repeat(number.len());
        let length = text.chars().count();
        let end = if end_line == line { end_column } else { length + 1 };
        let carets = "^".repeat(end.saturating_sub(column).max(1));
        // Tabs stay tabs, so that the caret stands under its character.
        let before: String = text.chars().take(column.saturating_sub(1)).collect();
        let pad: String = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{blank} |\n{number} | {}", text.trim_end())?;
        let label = error.label.as_deref().map(|l| format!(" {l}")).unwrap_or_default();
        writeln!(f, "{blank} | {pad}{carets}{label}")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let blank = " ".repeat(error.span.line.to_string().len());
            // The label repeats in the message: a log may keep that line alone.
            let label = error.label.as_deref().map(|l| format!("; {l}")).unwrap_or_default();
            writeln!(f, "error: {}{label}", error.message)?;
            let Span { line, column, .. } = error.span;
            writeln!(f, "{blank}--> {}:{line}:{column}", self.file_name)?;
            self.quote(f, error)?;
            if let Some(detail) = &error.detail {
                writeln!(f, "{blank} = detail: {detail}")?;
            }
            if let Some(hint) = &error.hint {
                writeln!(f, "{blank} = hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Whether the value of an option of this name must never be shown.
pub(crate) fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    ["passw", "pwd", "secret", "token", "sasl.jaas", "access-key", "access.key", "credential"]
        .iter()
        .any(|part| key.contains(part))
}

/// The value of an option as it may be shown.
pub(crate) fn shown(key: &str, value: &str) -> String {
    if is_secret(key) { "***".to_owned() } else { mask_urls(value) }
}

/// `scheme://user:password@host` with the password replaced, everywhere in a text.
fn mask_urls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(['\'', '"', ' ', '\n', '\r', '?']).unwrap_or(tail.len());
        let authority = &tail[..end];
        match authority.rfind('@').map(|i| (authority[..i].find(':'), i)) {
            Some((Some(colon), i)) => {
                out.push_str(&authority[..=colon]);
                out.push_str("***");
                out.push_str(&authority[i..]);
            }
            _ => out.push_str(authority),
        }
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// The script with secrets masked, line by line as long as it was or shorter.
fn masked(text: &str) -> String {
    let masked = mask_urls(text);
    let mut out = String::new();
    let mut literals = masked.split('\'').peekable();
    let mut inside = false;
    let mut secret = false;
    while let Some(part) = literals.next() {
        if inside && secret {
            // A secret may hold line breaks; the lines after it must keep their numbers.
            out.push_str("***");
            out.extend(part.chars().filter(|&c| c == '\n'));
            secret = false;
        } else {
            out.push_str(part);
            if inside {
                secret = is_secret(part) && !part.contains(char::is_whitespace);
            } else if !part.trim_matches(|c: char| c.is_whitespace() || c == '=').is_empty() {
                secret = false;
            }
        }
        if literals.peek().is_some() {
            out.push('\'');
        }
        inside = !inside;
    }
    out
}

/// The candidate nearest to a word, if one is near enough: a third of its letters may be wrong.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let letters: Vec<char> = word.to_lowercase().chars().collect();
    let allowed = (letters.len() / 3).max(if letters.len() >= 4 { 2 } else { 1 });
    let scored = candidates.into_iter().map(|c| {
        let other: Vec<char> = c.to_lowercase().chars().collect();
        (edits(&letters, &other), other.len().max(letters.len()), c)
    });
    scored
        .filter(|&(edits, longest, _)| edits <= allowed && edits < longest)
        .min_by_key(|&(edits, ..)| edits)
        .map(|(.., c)| c)
}

/// Letters inserted, deleted, replaced or swapped with their neighbour.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(table[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    table[a.len()][b.len()]
}
