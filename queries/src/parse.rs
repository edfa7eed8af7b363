//! The parser: tokens to statements, one error a statement.
//!
//! A recursive descent over Flink's grammar. What Weir does not run is refused here where the
//! grammar alone shows it, with the clause named, so that nothing is ever dropped in silence.

mod expressions;
mod literals;
mod select;
mod types;

use sqlparser::tokenizer::Token;

use crate::ast::{ColumnDef, ColumnKind, CreateTable, CreateView, Insert, Statement};
use crate::diagnostics::{Diagnostic, Span};
use crate::tokens::{Cursor, Name, Spanned, tokenize};

type Parsed<T> = Result<T, Diagnostic>;

/// Nested parentheses, calls and subqueries beyond this are refused.
const DEPTH_MAX: usize = 64;

/// The statements of a script, its errors, and the names of tables whose statements have errors.
#[derive(Debug, Default)]
pub(crate) struct ParsedScript {
    pub(crate) statements: Vec<Statement>,
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) broken: Vec<String>,
}

/// Parses a script; every statement with an error is left out and reported.
pub(crate) fn parse_script(text: &str) -> ParsedScript {
    let mut script = ParsedScript::default();
    let tokens = match tokenize(text) {
        Ok(tokens) => tokens,
        Err(error) => {
            script.errors.push(error);
            return script;
        }
    };
    let mut open_set: Option<(Span, Vec<Insert>)> = None;
    for piece in tokens.split(|t| t.token == Token::SemiColon).filter(|p| !p.is_empty()) {
        let mut cursor = Cursor::new(piece.to_vec());
        let span = cursor.span();
        let opens = cursor.take_words(&["EXECUTE", "STATEMENT", "SET", "BEGIN"])
            || cursor.take_words(&["BEGIN", "STATEMENT", "SET"]);
        if opens {
            open_set = Some((span, Vec::new()));
            if cursor.at_end() {
                continue;
            }
        }
        if open_set.is_some() && cursor.is_word("END") && cursor.peek_at(1).token == Token::EOF {
            script.statements.extend(open_set.take().map(|(_, inserts)| Statement::Set_(inserts)));
            continue;
        }
        take_statement(&mut cursor, piece, &mut open_set, &mut script);
    }
    if let Some((span, _)) = open_set {
        let message = "the statement set that begins here has no `END`";
        script.errors.push(Diagnostic::new(span, message));
    }
    script
}

fn take_statement(
    cursor: &mut Cursor,
    piece: &[Spanned],
    open_set: &mut Option<(Span, Vec<Insert>)>,
    script: &mut ParsedScript,
) {
    let span = cursor.span();
    match (cursor.statement(), open_set) {
        (Ok(Statement::Insert(insert)), Some((_, inserts))) => inserts.push(insert),
        (Ok(_), Some(_)) => {
            let message = "only INSERT INTO may stand in a statement set";
            script.errors.push(Diagnostic::new(span, message));
        }
        (Ok(statement), None) => script.statements.push(statement),
        (Err(error), _) => {
            script.errors.push(error);
            script.broken.extend(created_name(piece));
        }
    }
}

/// The name behind CREATE … TABLE or VIEW, read without a grammar.
fn created_name(piece: &[Spanned]) -> Option<String> {
    let mut cursor = Cursor::new(piece.to_vec());
    if !cursor.take_word("CREATE") {
        return None;
    }
    while !cursor.at_end() && !cursor.take_word("TABLE") && !cursor.take_word("VIEW") {
        cursor.next();
    }
    cursor.take_words(&["IF", "NOT", "EXISTS"]);
    cursor.name("a name").ok().map(|name| name.text)
}

impl Cursor {
    /// Keeps hostile nesting from overflowing the stack.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Cursor) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let message = format!("nested more than {DEPTH_MAX} levels deep");
            return Err(Diagnostic::new(self.span(), message));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn statement(&mut self) -> Parsed<Statement> {
        let statement = if self.is_word("CREATE") {
            self.create()?
        } else if self.is_word("INSERT") {
            Statement::Insert(self.insert()?)
        } else if self.take_word("DROP") {
            self.drop_statement()?
        } else if self.take_word("SET") {
            let key = self.string("the option's name in quotes")?;
            self.expect(&Token::Eq)?;
            let value = self.string("the option's value in quotes")?;
            Statement::Set { key, value }
        } else if self.take_word("EXPLAIN") {
            self.take_words(&["PLAN", "FOR"]);
            self.nested(|c| c.statement()).map(|s| Statement::Explain(Box::new(s)))?
        } else if self.is_word("SELECT") {
            Statement::Query(self.query()?)
        } else {
            let known = "CREATE TABLE, CREATE VIEW, INSERT INTO, EXECUTE STATEMENT SET, EXPLAIN, \
                         SET or DROP";
            return Err(self.unexpected(known));
        };
        if self.at_end() { Ok(statement) } else { Err(self.unexpected("the end of the statement")) }
    }

    fn drop_statement(&mut self) -> Parsed<Statement> {
        self.take_word("TEMPORARY");
        let view = self.take_word("VIEW");
        if !view {
            self.expect_word("TABLE")?;
        }
        let if_exists = self.take_words(&["IF", "EXISTS"]);
        Ok(Statement::Drop { name: self.name("a name")?, if_exists, view })
    }

    fn create(&mut self) -> Parsed<Statement> {
        self.expect_word("CREATE")?;
        self.take_words(&["OR", "REPLACE"]);
        self.take_word("TEMPORARY");
        if self.take_word("VIEW") {
            return self.create_view().map(Statement::CreateView);
        }
        if !self.take_word("TABLE") {
            return Err(self.unexpected("`TABLE` or `VIEW` after CREATE"));
        }
        self.create_table().map(Statement::CreateTable)
    }

    fn create_view(&mut self) -> Parsed<CreateView> {
        let if_not_exists = self.take_words(&["IF", "NOT", "EXISTS"]);
        let name = self.name("the view's name")?;
        let columns =
            if self.peek().token == Token::LParen { self.name_list()? } else { Vec::new() };
        self.comment()?;
        self.expect_word("AS")?;
        let query = self.query()?;
        Ok(CreateView { name, if_not_exists, columns, query })
    }

    fn comment(&mut self) -> Parsed<()> {
        if self.take_word("COMMENT") {
            self.string("the comment in quotes")?;
        }
        Ok(())
    }

    /// `(a, b, …)`.
    fn name_list(&mut self) -> Parsed<Vec<Name>> {
        self.expect(&Token::LParen)?;
        let mut names = vec![self.name("a column name")?];
        while self.take(&Token::Comma) {
            names.push(self.name("a column name")?);
        }
        self.expect(&Token::RParen)?;
        Ok(names)
    }

    fn create_table(&mut self) -> Parsed<CreateTable> {
        let if_not_exists = self.take_words(&["IF", "NOT", "EXISTS"]);
        let name = self.name("the table's name")?;
        let mut table = CreateTable {
            name,
            if_not_exists,
            columns: Vec::new(),
            watermark: None,
            primary_key: Vec::new(),
            partitioned_by: Vec::new(),
            options: Vec::new(),
        };
        self.expect(&Token::LParen)?;
        loop {
            self.table_item(&mut table)?;
            if self.take(&Token::Comma) {
                continue;
            }
            let before = self.last_item(&table);
            if self.peek().token != Token::RParen {
                return Err(self.unexpected(&format!("`,` or `)` after {before}")));
            }
            self.next();
            break;
        }
        self.comment()?;
        if self.take_words(&["PARTITIONED", "BY"]) {
            table.partitioned_by = self.name_list()?;
        }
        if self.is_word("LIKE") {
            let message = "CREATE TABLE … LIKE is not supported";
            return Err(Diagnostic::new(self.span(), message).hint("repeat the columns"));
        }
        if !self.take_word("WITH") {
            return Err(self.unexpected("`WITH ('connector' = …)`"));
        }
        self.options(&mut table)?;
        Ok(table)
    }

    fn last_item(&self, table: &CreateTable) -> String {
        match table.columns.last() {
            Some(column) => format!("the column `{}`", column.name.text),
            None => "the table's item".to_owned(),
        }
    }

    fn options(&mut self, table: &mut CreateTable) -> Parsed<()> {
        self.expect(&Token::LParen)?;
        loop {
            let key = self.string("an option's name in quotes")?;
            self.expect(&Token::Eq)?;
            let value = self.string("the option's value in quotes")?;
            if let Some((first, _)) = table.options.iter().find(|(k, _)| k.text == key.text) {
                let message =
                    format!("the option '{}' is set twice (line {})", key.text, first.span.line);
                return Err(Diagnostic::new(key.span, message));
            }
            table.options.push((key, value));
            if !self.take(&Token::Comma) {
                break;
            }
        }
        self.expect(&Token::RParen)?;
        Ok(())
    }

    fn table_item(&mut self, table: &mut CreateTable) -> Parsed<()> {
        if self.are_words(&["WATERMARK", "FOR"]) {
            let span = self.next().span;
            self.next();
            let mut column = self.name("the event-time column")?;
            while self.take(&Token::Period) {
                let field = self.name("a field")?;
                column.text = format!("{}.{}", column.text, field.text);
            }
            self.expect_word("AS")?;
            let expr = self.expr()?;
            if table.watermark.is_some() {
                return Err(Diagnostic::new(span, "a table has one WATERMARK at most"));
            }
            table.watermark = Some((column, expr));
            return Ok(());
        }
        let constraint = self.take_word("CONSTRAINT");
        if constraint {
            self.name("the constraint's name")?;
        }
        if constraint || self.are_words(&["PRIMARY", "KEY"]) {
            self.primary_key_words()?;
            let columns = self.name_list()?;
            self.not_enforced()?;
            return Self::set_key(table, columns);
        }
        self.column(table)
    }

    fn primary_key_words(&mut self) -> Parsed<()> {
        self.expect_word("PRIMARY")?;
        self.expect_word("KEY")?;
        Ok(())
    }

    fn not_enforced(&mut self) -> Parsed<()> {
        if self.take_words(&["NOT", "ENFORCED"]) {
            return Ok(());
        }
        let hint = "write PRIMARY KEY (…) NOT ENFORCED: the data is taken at its word";
        Err(self.unexpected("`NOT ENFORCED` after PRIMARY KEY").hint(hint))
    }

    fn set_key(table: &mut CreateTable, columns: Vec<Name>) -> Parsed<()> {
        match columns.first() {
            Some(first) if !table.primary_key.is_empty() => {
                Err(Diagnostic::new(first.span, "a table has one PRIMARY KEY at most"))
            }
            _ => {
                table.primary_key = columns;
                Ok(())
            }
        }
    }

    fn column(&mut self, table: &mut CreateTable) -> Parsed<()> {
        let name = self.name("a column name")?;
        let kind = if self.take_word("AS") {
            ColumnKind::Computed(self.expr()?)
        } else {
            let data_type = self.data_type()?;
            if self.take_word("METADATA") {
                let key = if self.take_word("FROM") {
                    Some(self.string("a key in quotes")?)
                } else {
                    None
                };
                let not_null = self.take_words(&["NOT", "NULL"]);
                let is_virtual = self.take_word("VIRTUAL");
                ColumnKind::Metadata { data_type, key, not_null, is_virtual }
            } else {
                let not_null = self.take_words(&["NOT", "NULL"]);
                if !not_null {
                    self.take_word("NULL");
                }
                if self.are_words(&["PRIMARY", "KEY"]) {
                    self.primary_key_words()?;
                    self.not_enforced()?;
                    Self::set_key(table, vec![name.clone()])?;
                }
                ColumnKind::Physical { data_type, not_null }
            }
        };
        self.comment()?;
        table.columns.push(ColumnDef { name, kind });
        Ok(())
    }

    fn insert(&mut self) -> Parsed<Insert> {
        self.expect_word("INSERT")?;
        if self.is_word("OVERWRITE") {
            return Err(Diagnostic::new(self.span(), "INSERT OVERWRITE is not supported"));
        }
        self.expect_word("INTO")?;
        let table = self.name("the sink's name")?;
        let columns =
            if self.peek().token == Token::LParen { self.name_list()? } else { Vec::new() };
        let query = self.query()?;
        Ok(Insert { table, columns, query })
    }
}
