//! Queries: SELECT, FROM with joins and window table functions, GROUP BY, the late clause.

use sqlparser::tokenizer::Token;

use super::Parsed;
use crate::ast::{
    Expr, Factor, FactorKind, From, GroupBy, Item, Join, Late, Query, Select, WindowCall,
};
use crate::diagnostics::{Diagnostic, Span};
use crate::tokens::{Cursor, Name};

/// The window table functions.
const WINDOWS: [&str; 4] = ["TUMBLE", "HOP", "CUMULATE", "SESSION"];

impl Cursor {
    /// A query with all its clauses.
    pub(super) fn query(&mut self) -> Parsed<Query> {
        self.nested(Cursor::query_inner)
    }

    fn query_inner(&mut self) -> Parsed<Query> {
        if self.is_word("WITH") {
            let message = "WITH (common table expressions) is not supported yet";
            return Err(Diagnostic::new(self.span(), message).hint("use CREATE VIEW"));
        }
        if self.is_word("VALUES") {
            return Err(Diagnostic::new(self.span(), "VALUES as a source is not supported"));
        }
        let mut selects = vec![self.select()?];
        while self.is_word("UNION") {
            let span = self.next().span;
            if !self.take_word("ALL") {
                let message = "UNION removes duplicates, which needs endless state on a stream";
                return Err(Diagnostic::new(span, message).hint("write UNION ALL"));
            }
            if self.take(&Token::LParen) {
                selects.push(self.select()?);
                self.expect(&Token::RParen)?;
            } else {
                selects.push(self.select()?);
            }
        }
        self.refused_tail()?;
        let late = self.late()?;
        self.refused_tail()?;
        Ok(Query { selects, late })
    }

    /// Clauses behind a query that are not run, by name.
    fn refused_tail(&mut self) -> Parsed<()> {
        let span = self.span();
        let refuse =
            |message: &str, hint: &str| Err(Diagnostic::new(span, message).hint(hint.to_owned()));
        if self.is_word("INTERSECT") || self.is_word("EXCEPT") {
            return refuse("INTERSECT and EXCEPT are not supported", "use UNION ALL and a filter");
        }
        if self.are_words(&["ORDER", "BY"]) {
            return refuse(
                "ORDER BY cannot sort an unbounded stream: it would need all rows",
                "rank inside a window (ROW_NUMBER, not supported yet), or drop ORDER BY",
            );
        }
        if self.is_word("LIMIT") || self.is_word("FETCH") || self.is_word("OFFSET") {
            return refuse(
                "LIMIT without ORDER BY on a stream would pick rows by chance of arrival",
                "filter with WHERE; Top-N by ORDER BY is not supported yet",
            );
        }
        if self.is_word("WINDOW") {
            return refuse("the WINDOW clause is not supported yet", "use TUMBLE, HOP or SESSION");
        }
        if self.is_word("QUALIFY") {
            return refuse("QUALIFY is not supported", "use HAVING over a window");
        }
        if self.is_word("EMIT") {
            return refuse("EMIT is not supported", "windows emit when the watermark passes them");
        }
        if self.is_word("WHERE") {
            return refuse("`WHERE` must stand before `GROUP BY` and `HAVING`", "move it");
        }
        if self.are_words(&["GROUP", "BY"]) {
            return refuse("`GROUP BY` must stand after `WHERE` and before `HAVING`", "move it");
        }
        Ok(())
    }

    fn late(&mut self) -> Parsed<Option<Late>> {
        if !self.are_words(&["ON", "LATE"]) {
            return Ok(None);
        }
        let span = self.next().span.to(self.next().span);
        if self.take_word("DROP") {
            return Ok(Some(Late { span, into: None }));
        }
        if self.is_word("UPDATE") {
            let message = "ON LATE UPDATE is not supported yet";
            let hint = "use ON LATE DROP or ON LATE INTO a table";
            return Err(Diagnostic::new(span.to(self.span()), message).hint(hint));
        }
        if !self.take_word("INTO") {
            return Err(self.unexpected("DROP or INTO after ON LATE"));
        }
        Ok(Some(Late { span, into: Some(self.name("the table for late rows")?) }))
    }

    fn select(&mut self) -> Parsed<Select> {
        let span = self.expect_word("SELECT")?;
        if self.is_word("DISTINCT") {
            let message = "SELECT DISTINCT needs endless state on a stream; not supported yet";
            let hint = "group by the columns and a window instead";
            return Err(Diagnostic::new(self.span(), message).hint(hint));
        }
        self.take_word("ALL");
        let mut items = vec![self.item()?];
        while self.take(&Token::Comma) {
            items.push(self.item()?);
        }
        let from = if self.take_word("FROM") { Some(self.from()?) } else { None };
        let filter = if self.take_word("WHERE") { Some(self.expr()?) } else { None };
        let group_by = if self.are_words(&["GROUP", "BY"]) { Some(self.group_by()?) } else { None };
        let having = if self.take_word("HAVING") { Some(self.expr()?) } else { None };
        Ok(Select { span, items, from, filter, group_by, having })
    }

    fn item(&mut self) -> Parsed<Item> {
        if self.peek().token == Token::Mul {
            return Ok(Item::All { table: None, span: self.next().span });
        }
        if self.peek_at(1).token == Token::Period && self.peek_at(2).token == Token::Mul {
            let table = self.name("a table")?;
            self.next();
            let span = table.span.to(self.next().span);
            return Ok(Item::All { table: Some(table), span });
        }
        let expr = self.expr()?;
        let alias = self.alias()?;
        Ok(Item::Expr { expr, alias })
    }

    fn alias(&mut self) -> Parsed<Option<Name>> {
        if self.take_word("AS") {
            return self.name("an alias").map(Some);
        }
        let clause = ["ON", "ASOF", "FETCH", "EMIT", "QUALIFY", "MATCH_RECOGNIZE"];
        let follows = clause.iter().any(|w| self.is_word(w));
        match &self.peek().token {
            Token::Word(_) if !follows => {
                let mut ahead = self.clone();
                match ahead.name("an alias") {
                    Ok(name) => {
                        *self = ahead;
                        Ok(Some(name))
                    }
                    Err(_) => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    fn group_by(&mut self) -> Parsed<GroupBy> {
        let span = self.next().span.to(self.next().span);
        let mut group = GroupBy { span, plain: Vec::new(), sets: Vec::new() };
        loop {
            let at = self.span();
            let sets = if self.are_words(&["GROUPING", "SETS"]) {
                self.next();
                self.next();
                Some(self.grouping_sets()?)
            } else if self.is_word("ROLLUP") || self.is_word("CUBE") {
                let rollup = self.is_word("ROLLUP");
                self.next();
                self.expect(&Token::LParen)?;
                let columns = self.comma_exprs()?;
                self.expect(&Token::RParen)?;
                Some(if rollup { rollup_sets(&columns) } else { cube_sets(&columns) })
            } else {
                group.plain.push(self.expr()?);
                None
            };
            if let Some(sets) = sets {
                if !group.sets.is_empty() {
                    let message = "several GROUPING SETS, ROLLUP or CUBE are not supported";
                    return Err(Diagnostic::new(at, message));
                }
                if sets.len() > 64 {
                    return Err(Diagnostic::new(at, "more than 64 grouping sets"));
                }
                group.sets = sets;
            }
            if !self.take(&Token::Comma) {
                return Ok(group);
            }
        }
    }

    fn comma_exprs(&mut self) -> Parsed<Vec<Expr>> {
        let mut list = vec![self.expr()?];
        while self.take(&Token::Comma) {
            list.push(self.expr()?);
        }
        Ok(list)
    }

    fn grouping_sets(&mut self) -> Parsed<Vec<Vec<Expr>>> {
        self.expect(&Token::LParen)?;
        let mut sets = Vec::new();
        loop {
            if self.take(&Token::LParen) {
                if self.take(&Token::RParen) {
                    sets.push(Vec::new());
                } else {
                    sets.push(self.comma_exprs()?);
                    self.expect(&Token::RParen)?;
                }
            } else {
                sets.push(vec![self.expr()?]);
            }
            if !self.take(&Token::Comma) {
                self.expect(&Token::RParen)?;
                return Ok(sets);
            }
        }
    }

    fn from(&mut self) -> Parsed<From> {
        let first = self.factor()?;
        let mut joins = Vec::new();
        loop {
            let span = self.span();
            if self.take(&Token::Comma) {
                let other = Some("a comma between tables (a cross join)".to_owned());
                let factor = self.factor()?;
                joins.push(Join { span, left_outer: false, other, factor, on: None });
                continue;
            }
            let Some((left_outer, other)) = self.join_words() else { break };
            let factor = self.factor()?;
            if self.is_word("USING") {
                let message = "JOIN … USING is not supported";
                return Err(Diagnostic::new(self.span(), message).hint("write ON a.k = b.k"));
            }
            let joined = self.is_word("ON") && !self.is_word_at(1, "LATE");
            let on = if joined {
                self.next();
                Some(self.expr()?)
            } else {
                None
            };
            joins.push(Join { span, left_outer, other, factor, on });
        }
        if self.is_word("MATCH_RECOGNIZE") {
            return Err(Diagnostic::new(self.span(), "MATCH_RECOGNIZE is not supported yet"));
        }
        Ok(From { first, joins })
    }

    /// The words of a join: whether it is a left join, and its name if it is neither inner nor
    /// left.
    fn join_words(&mut self) -> Option<(bool, Option<String>)> {
        if self.take_word("JOIN") || self.take_words(&["INNER", "JOIN"]) {
            return Some((false, None));
        }
        if self.take_words(&["LEFT", "JOIN"]) || self.take_words(&["LEFT", "OUTER", "JOIN"]) {
            return Some((true, None));
        }
        for kind in ["RIGHT", "FULL", "CROSS", "NATURAL", "ASOF", "LEFT"] {
            if self.is_word(kind) {
                let mut words = Vec::new();
                while !self.at_end() && !self.is_word("JOIN") && words.len() < 3 {
                    words.push(self.next().token.to_string().to_uppercase());
                }
                self.take_word("JOIN");
                return Some((false, Some(format!("{} JOIN", words.join(" ")))));
            }
        }
        None
    }

    fn factor(&mut self) -> Parsed<Factor> {
        let start = self.span();
        let kind = if self.is_word("TABLE") && self.peek_at(1).token == Token::LParen {
            self.next();
            self.next();
            let call = self.window_call()?;
            self.expect(&Token::RParen)?;
            FactorKind::Window(call)
        } else if self.peek_at(1).token == Token::LParen && !self.is_word("LATERAL") {
            FactorKind::Window(self.window_call()?)
        } else if self.peek().token == Token::LParen {
            self.next();
            let query = self.query()?;
            self.expect(&Token::RParen)?;
            FactorKind::Query(Box::new(query))
        } else {
            if self.is_word("LATERAL") || self.is_word("UNNEST") {
                let message = "LATERAL and UNNEST are not supported yet";
                return Err(Diagnostic::new(start, message));
            }
            FactorKind::Table(self.name("a table")?)
        };
        let end = self.last_span();
        let as_of = self.as_of()?;
        let alias = if self.is_word("FOR") { None } else { self.alias()? };
        let as_of = if as_of.is_none() { self.as_of()? } else { as_of };
        if self.is_word("MATCH_RECOGNIZE") {
            return Err(Diagnostic::new(self.span(), "MATCH_RECOGNIZE is not supported yet"));
        }
        Ok(Factor { kind, alias, span: start.to(end), as_of })
    }

    fn as_of(&mut self) -> Parsed<Option<Expr>> {
        if !self.take_words(&["FOR", "SYSTEM_TIME", "AS", "OF"]) {
            return Ok(None);
        }
        // The alias that may follow without AS would be taken for no part of the expression.
        self.expr().map(Some)
    }

    fn window_call(&mut self) -> Parsed<WindowCall> {
        let function = self.name("a window function")?;
        if !WINDOWS.contains(&function.text.to_uppercase().as_str()) {
            let message = format!("table function `{}` does not exist", function.text);
            return Err(Diagnostic::new(function.span, message).meant(&function.text, WINDOWS));
        }
        self.expect(&Token::LParen)?;
        let mut input = None;
        let mut time = None;
        let mut partition_by = Vec::new();
        let mut arguments = Vec::new();
        loop {
            let named = self.peek_at(1).token == Token::RArrow;
            let label = if named { Some(self.name("an argument's name")?) } else { None };
            if named {
                self.next();
            }
            if self.is_word("DESCRIPTOR") {
                self.next();
                time = Some(self.descriptor()?);
            } else if input.is_none() {
                input = Some(self.window_input()?);
                if self.take_words(&["PARTITION", "BY"]) {
                    partition_by = self.partition_names()?;
                }
            } else {
                arguments.push((label, self.expr()?));
            }
            if !self.take(&Token::Comma) {
                break;
            }
        }
        let end = self.expect(&Token::RParen)?;
        let whole = function.span.to(end);
        let missing = |what: &str| window_usage(&function, whole, what);
        let input = Box::new(input.ok_or_else(|| missing("a table"))?);
        let time = time.ok_or_else(|| missing("DESCRIPTOR(ts)"))?;
        Ok(WindowCall { function, input, time, partition_by, arguments })
    }

    fn descriptor(&mut self) -> Parsed<Name> {
        self.expect(&Token::LParen)?;
        let column = self.name("the event-time column")?;
        self.expect(&Token::RParen)?;
        Ok(column)
    }

    fn partition_names(&mut self) -> Parsed<Vec<Name>> {
        let bracket = self.take(&Token::LParen);
        let mut names = vec![self.name("a column")?];
        // Without brackets a comma may end the list: DESCRIPTOR, or a named argument, follows.
        while self.peek().token == Token::Comma
            && (bracket
                || !(self.is_word_at(1, "DESCRIPTOR") || self.peek_at(2).token == Token::RArrow))
        {
            self.next();
            names.push(self.name("a column")?);
        }
        if bracket {
            self.expect(&Token::RParen)?;
        }
        Ok(names)
    }

    fn window_input(&mut self) -> Parsed<Factor> {
        let start = self.span();
        self.take_word("TABLE");
        let kind = if self.take(&Token::LParen) {
            let query = self.query()?;
            self.expect(&Token::RParen)?;
            FactorKind::Query(Box::new(query))
        } else {
            FactorKind::Table(self.name("a table")?)
        };
        let span = match &kind {
            FactorKind::Table(name) => name.span,
            _ => start.to(self.last_span()),
        };
        Ok(Factor { kind, alias: None, span, as_of: None })
    }
}

/// How a window table function is written.
fn window_usage(function: &Name, span: Span, missing: &str) -> Diagnostic {
    let name = function.text.to_uppercase();
    let message = format!("{name} needs {missing}");
    let usage = format!("write TABLE({name}(TABLE t, DESCRIPTOR(ts), INTERVAL '5' MINUTE))");
    Diagnostic::new(span, message).hint(usage)
}

/// (a, b, c), (a, b), (a), ().
fn rollup_sets(columns: &[Expr]) -> Vec<Vec<Expr>> {
    (0..=columns.len()).rev().map(|n| columns[..n].to_vec()).collect()
}

/// All subsets, the fullest first.
fn cube_sets(columns: &[Expr]) -> Vec<Vec<Expr>> {
    let n = columns.len().min(7);
    let subset = |bits: usize| {
        let chosen = (0..n).filter(move |i| bits >> (n - 1 - i) & 1 == 1);
        chosen.map(|i| columns[i].clone()).collect()
    };
    (0..1 << n).rev().map(subset).collect()
}
