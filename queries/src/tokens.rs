//! The script as tokens with places, and a cursor over them.

use sqlparser::dialect::Dialect;
use sqlparser::tokenizer::{Token, Tokenizer, Word};

use crate::diagnostics::{Diagnostic, Span};

/// Flink's lexical rules: back-ticks quote names, `''` is a quote within a string.
#[derive(Debug)]
struct FlinkDialect;

impl Dialect for FlinkDialect {
    fn is_delimited_identifier_start(&self, c: char) -> bool {
        c == '`'
    }

    fn is_identifier_start(&self, c: char) -> bool {
        c.is_alphabetic() || c == '_'
    }

    fn is_identifier_part(&self, c: char) -> bool {
        c.is_alphanumeric() || c == '_' || c == '$'
    }
}

/// A token with its place.
#[derive(Clone, Debug)]
pub(crate) struct Spanned {
    pub(crate) token: Token,
    pub(crate) span: Span,
}

/// A name with its place.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// The tokens of a script without white space and comments, one statement after the other.
pub(crate) fn tokenize(text: &str) -> Result<Vec<Spanned>, Diagnostic> {
    let tokens = Tokenizer::new(&FlinkDialect, text).tokenize_with_location().map_err(|e| {
        let (line, column) = (e.location.line as usize, e.location.column as usize);
        let span = Span { line, column, end_line: line, end_column: column + 1 };
        let message = if e.message.contains("Unterminated string") {
            "the string literal that starts here is never closed: its quote is missing".to_owned()
        } else {
            e.message
        };
        Diagnostic::new(span, message)
    })?;
    let place = |t: sqlparser::tokenizer::TokenWithSpan| {
        let (start, end) = (t.span.start, t.span.end);
        let span = Span {
            line: start.line as usize,
            column: start.column as usize,
            end_line: end.line as usize,
            end_column: end.column as usize,
        };
        Spanned { token: t.token, span }
    };
    let solid = |t: &sqlparser::tokenizer::TokenWithSpan| !matches!(t.token, Token::Whitespace(_));
    let mut out: Vec<Spanned> = Vec::with_capacity(tokens.len());
    for spanned in tokens.into_iter().filter(solid).map(place) {
        // `>>` closes two types; it is no operator in Flink's SQL.
        if spanned.token == Token::ShiftRight {
            out.push(Spanned { token: Token::Gt, ..spanned.clone() });
            out.push(Spanned { token: Token::Gt, ..spanned });
        } else {
            out.push(spanned);
        }
    }
    Ok(out)
}

/// Words that cannot be names without back-ticks.
const RESERVED: &[&str] = &[
    "ALL",
    "AND",
    "ANY",
    "AS",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "CONSTRAINT",
    "CREATE",
    "CROSS",
    "DISTINCT",
    "DROP",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "FALSE",
    "FETCH",
    "FOR",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "IN",
    "INNER",
    "INSERT",
    "INTERSECT",
    "INTERVAL",
    "INTO",
    "IS",
    "JOIN",
    "LATERAL",
    "LEFT",
    "LIKE",
    "LIMIT",
    "MATCH_RECOGNIZE",
    "NATURAL",
    "NOT",
    "NULL",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "PRIMARY",
    "RIGHT",
    "SELECT",
    "SET",
    "SIMILAR",
    "TABLE",
    "THEN",
    "TRUE",
    "UNION",
    "UNIQUE",
    "USING",
    "VALUES",
    "WHEN",
    "WHERE",
    "WINDOW",
    "WITH",
];

/// Whether a word cannot be a name without back-ticks.
pub(crate) fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word.to_uppercase().as_str())
}

/// A token as messages show it.
pub(crate) fn shown_token(token: &Token) -> String {
    match token {
        Token::EOF => "the end of the statement".to_owned(),
        Token::SingleQuotedString(_) => "a string".to_owned(),
        token => format!("`{token}`"),
    }
}

/// Reads tokens of one statement.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    tokens: Vec<Spanned>,
    at: usize,
    /// How deep the parser is nested.
    pub(crate) depth: usize,
}

impl Cursor {
    /// A cursor over a statement's tokens, of which there is at least one.
    pub(crate) fn new(mut tokens: Vec<Spanned>) -> Cursor {
        let end =
            tokens.last().map_or(Span { line: 1, column: 1, end_line: 1, end_column: 1 }, |t| {
                Span { line: t.span.end_line, column: t.span.end_column, ..t.span }
            });
        tokens.push(Spanned { token: Token::EOF, span: end });
        Cursor { tokens, at: 0, depth: 0 }
    }

    pub(crate) fn peek_at(&self, ahead: usize) -> &Spanned {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)]
    }

    pub(crate) fn peek(&self) -> &Spanned {
        self.peek_at(0)
    }

    pub(crate) fn next(&mut self) -> Spanned {
        let token = self.peek().clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(crate) fn span(&self) -> Span {
        self.peek().span
    }

    /// The place of the token taken last.
    pub(crate) fn last_span(&self) -> Span {
        self.tokens[self.at.saturating_sub(1)].span
    }

    pub(crate) fn at_end(&self) -> bool {
        self.peek().token == Token::EOF
    }

    /// Whether the token some places ahead is this unquoted word.
    pub(crate) fn is_word_at(&self, ahead: usize, word: &str) -> bool {
        matches!(&self.peek_at(ahead).token, Token::Word(Word { value, quote_style: None, .. })
            if value.eq_ignore_ascii_case(word))
    }

    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.is_word_at(0, word)
    }

    /// Whether these unquoted words come next.
    pub(crate) fn are_words(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(i, word)| self.is_word_at(i, word))
    }

    /// Takes these words if they come next.
    pub(crate) fn take_words(&mut self, words: &[&str]) -> bool {
        let found = self.are_words(words);
        if found {
            self.at += words.len();
        }
        found
    }

    pub(crate) fn take_word(&mut self, word: &str) -> bool {
        self.take_words(&[word])
    }

    pub(crate) fn take(&mut self, token: &Token) -> bool {
        let found = self.peek().token == *token;
        if found {
            self.next();
        }
        found
    }

    /// An error at the next token.
    pub(crate) fn unexpected(&self, expected: &str) -> Diagnostic {
        let found = shown_token(&self.peek().token);
        Diagnostic::new(self.span(), format!("expected {expected}, found {found}"))
    }

    pub(crate) fn expect_word(&mut self, word: &str) -> Result<Span, Diagnostic> {
        let span = self.span();
        if self.take_word(word) { Ok(span) } else { Err(self.unexpected(&format!("`{word}`"))) }
    }

    pub(crate) fn expect(&mut self, token: &Token) -> Result<Span, Diagnostic> {
        let span = self.span();
        if self.take(token) { Ok(span) } else { Err(self.unexpected(&format!("`{token}`"))) }
    }

    /// A name: a word that is not reserved, or anything in back-ticks.
    pub(crate) fn name(&mut self, what: &str) -> Result<Name, Diagnostic> {
        match self.peek().token.clone() {
            Token::Word(w) if w.quote_style.is_some() || !is_reserved(&w.value) => {
                let span = self.next().span;
                Ok(Name { text: w.value, span })
            }
            Token::Word(w) => {
                let message = format!("expected {what}, found the reserved word `{}`", w.value);
                let hint = format!("as a name it must be quoted with back-ticks: `{}`", w.value);
                Err(Diagnostic::new(self.span(), message).hint(hint))
            }
            _ => Err(self.unexpected(what)),
        }
    }

    /// A string literal with its place.
    pub(crate) fn string(&mut self, what: &str) -> Result<Name, Diagnostic> {
        match self.peek().token.clone() {
            Token::SingleQuotedString(text) => Ok(Name { text, span: self.next().span }),
            _ => Err(self.unexpected(what)),
        }
    }
}
