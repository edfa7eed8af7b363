//! Rust source with its comments and literals blanked, so that rules can be plain text searches.
//!
//! # Invariant
//! The blanked text has the same lines and the same columns (in characters) as the source.
//!
//! # Limits
//! A scanner, not a parser: it knows nested comments, strings, raw and byte strings, characters and
//! lifetimes. Macros are text like any other.

/// A source file, line by line.
pub(super) struct Source {
    /// The lines as written.
    pub(super) lines: Vec<String>,
    /// The lines with comments, strings and characters as spaces.
    pub(super) code: Vec<String>,
    /// Whether a line begins inside a string: its length is the data's, not ours.
    pub(super) in_string: Vec<bool>,
    /// Whether a line belongs to a test.
    pub(super) in_test: Vec<bool>,
}

#[derive(Clone, Copy)]
enum State {
    Code,
    LineComment,
    BlockComment(usize),
    /// Ends at a quote; a backslash hides the next character.
    Quoted(char),
    /// Ends at a quote and this many hashes.
    Raw(usize),
}

impl Source {
    pub(super) fn new(text: &str) -> Source {
        let (blanked, string_starts) = blank(text);
        let code: Vec<String> = blanked.lines().map(str::to_owned).collect();
        let in_test = test_lines(&code);
        let lines = text.lines().map(str::to_owned).collect();
        Source { lines, code, in_string: string_starts, in_test }
    }
}

/// The blanked text, and per line whether it begins inside a string.
fn blank(text: &str) -> (String, Vec<bool>) {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut in_string = vec![false];
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let (next, width, shown) = step(state, &chars, at);
        for &c in &chars[at..(at + width).min(chars.len())] {
            out.push(if c == '\n' || shown { c } else { ' ' });
            if c == '\n' {
                in_string.push(matches!(next, State::Quoted(_) | State::Raw(_)));
            }
        }
        state = next;
        at += width;
    }
    (out, in_string)
}

/// From one position: the state after it, how many characters it takes, and whether they are code.
fn step(state: State, chars: &[char], at: usize) -> (State, usize, bool) {
    let c = chars[at];
    let peek = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\0');
    match state {
        State::Code => start(chars, at),
        State::LineComment if c == '\n' => (State::Code, 1, false),
        State::LineComment => (state, 1, false),
        State::BlockComment(depth) => match (c, peek(1)) {
            ('*', '/') if depth == 1 => (State::Code, 2, false),
            ('*', '/') => (State::BlockComment(depth - 1), 2, false),
            ('/', '*') => (State::BlockComment(depth + 1), 2, false),
            _ => (state, 1, false),
        },
        State::Quoted(_) if c == '\\' => (state, 2, false),
        State::Quoted(end) if c == end => (State::Code, 1, false),
        State::Quoted(_) => (state, 1, false),
        State::Raw(hashes) if c == '"' && (1..=hashes).all(|n| peek(n) == '#') => {
            (State::Code, 1 + hashes, false)
        }
        State::Raw(_) => (state, 1, false),
    }
}

/// As [`step`], in code.
fn start(chars: &[char], at: usize) -> (State, usize, bool) {
    let peek = |ahead: usize| chars.get(at + ahead).copied().unwrap_or('\0');
    let after_word = at > 0 && is_word(chars[at - 1]);
    match chars[at] {
        '/' if peek(1) == '/' => (State::LineComment, 2, false),
        '/' if peek(1) == '*' => (State::BlockComment(1), 2, false),
        '"' => (State::Quoted('"'), 1, false),
        // A lifetime is a quote and a word without a second quote.
        '\'' if peek(1) == '\\' || peek(2) == '\'' => (State::Quoted('\''), 1, false),
        'r' | 'b' | 'c' if !after_word => {
            let letters = if peek(1) == 'r' { 2 } else { 1 };
            let raw = chars[at] == 'r' || letters == 2;
            let hashes = (letters..).take_while(|&n| peek(n) == '#').count();
            match peek(letters + hashes) {
                '"' if raw => (State::Raw(hashes), letters + hashes + 1, false),
                _ => (State::Code, 1, true),
            }
        }
        _ => (State::Code, 1, true),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Marks the items under `#[cfg(test)]` and `#[test]`.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut marked = vec![false; code.len()];
    for (first, line) in code.iter().enumerate() {
        let attribute = ["#[cfg(test)]", "#[test]", "#[cfg(all(test"];
        if attribute.iter().any(|a| line.contains(a)) {
            let last = block_end(code, first, 0).unwrap_or(code.len() - 1);
            marked[first..=last].fill(true);
        }
    }
    marked
}

/// The last line of the item that begins at a line and column: its closing brace, or its semicolon
/// if it has no body.
pub(super) fn block_end(code: &[String], line: usize, column: usize) -> Option<usize> {
    let (mut braces, mut brackets) = (0usize, 0usize);
    for (number, text) in code.iter().enumerate().skip(line) {
        let from = if number == line { column } else { 0 };
        for c in text.chars().skip(from) {
            match c {
                '{' => braces += 1,
                '}' => {
                    braces = braces.saturating_sub(1);
                    if braces == 0 {
                        return Some(number);
                    }
                }
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets = brackets.saturating_sub(1),
                ';' if braces == 0 && brackets == 0 => return Some(number),
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new(text).code.join("\n")
    }

    /// What is left of a text, with a dot for each blank that was not one before.
    fn check(text: &str, left: &str) {
        let blanked = code(text);
        let dotted = text.chars().zip(blanked.chars()).map(|(was, is)| match is {
            ' ' if was != ' ' => '.',
            other => other,
        });
        assert_eq!(dotted.collect::<String>(), left);
    }

    #[test]
    fn literals_and_comments_are_blank() {
        check(r#"a("x{\"}") // b {"#, "a(.......) .. . .");
        check("/* { /* } */ { */ c", ".. . .. . .. . .. c");
        check(r##"r#"a"b{"# d br"{" e"##, "......... d ..... e");
        check(r"'x' '\'' '{' e '}'", "... .... ... e ...");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
    }

    #[test]
    fn columns_and_lines_stay() {
        let text = "let s = \"ä\nö\"; // ü\nlet t = 1;\n";
        let source = Source::new(text);
        assert_eq!(source.in_string, [false, true, false, false]);
        for (line, code) in source.lines.iter().zip(&source.code) {
            assert_eq!(line.chars().count(), code.chars().count());
        }
    }

    #[test]
    fn tests_are_known() {
        let source =
            Source::new("fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n");
        assert_eq!(source.in_test, [false, true, true, true, true, false]);
        let source = Source::new("#[cfg(test)]\nmod tests;\nfn c() {}\n");
        assert_eq!(source.in_test, [true, true, false]);
    }
}
