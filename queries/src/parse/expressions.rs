//! Scalar expressions by precedence: OR, AND, NOT, comparison, `||`, sum, product, sign, postfix.

use sqlparser::tokenizer::{Token, Word};

use super::Parsed;
use crate::ast::{Call, Expr, ExprKind, Op, Value};
use crate::diagnostics::{Diagnostic, Span};
use crate::tokens::{Cursor, Name, is_reserved};

fn binary(op: Op, left: Expr, right: Expr) -> Expr {
    let span = left.span.to(right.span);
    let (left, right) = (Box::new(left), Box::new(right));
    Expr { span, kind: ExprKind::Binary { op, left, right } }
}

/// Functions with brackets of their own whose words are no arguments by comma.
const BARE: &[&str] = &[
    "CURRENT_TIMESTAMP",
    "CURRENT_DATE",
    "CURRENT_TIME",
    "LOCALTIMESTAMP",
    "LOCALTIME",
    "CURRENT_ROW_TIMESTAMP",
];

impl Cursor {
    /// An expression.
    pub(super) fn expr(&mut self) -> Parsed<Expr> {
        self.nested(Cursor::or)
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.is_word("OR") {
            self.next();
            left = binary(Op::Or, left, self.and()?);
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.not()?;
        while self.is_word("AND") {
            self.next();
            left = binary(Op::And, left, self.not()?);
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expr> {
        if !self.is_word("NOT") {
            return self.comparison();
        }
        let start = self.next().span;
        let inner = self.nested(Cursor::not)?;
        Ok(Expr { span: start.to(inner.span), kind: ExprKind::Not(Box::new(inner)) })
    }

    fn comparison(&mut self) -> Parsed<Expr> {
        let mut left = self.concat()?;
        loop {
            let op = match self.peek().token {
                Token::Eq => Op::Eq,
                Token::Neq => Op::NotEq,
                Token::Lt => Op::Lt,
                Token::LtEq => Op::LtEq,
                Token::Gt => Op::Gt,
                Token::GtEq => Op::GtEq,
                _ => match self.predicate(left)? {
                    (next, true) => {
                        left = next;
                        continue;
                    }
                    (done, false) => return Ok(done),
                },
            };
            self.next();
            left = binary(op, left, self.concat()?);
        }
    }

    /// IS, IN, BETWEEN, LIKE, SIMILAR TO behind an expression; whether there was one.
    fn predicate(&mut self, left: Expr) -> Parsed<(Expr, bool)> {
        if self.take_word("IS") {
            return Ok((self.is_predicate(left)?, true));
        }
        let follows = ["IN", "BETWEEN", "LIKE", "SIMILAR"];
        let negated = self.is_word("NOT") && follows.iter().any(|w| self.is_word_at(1, w));
        if negated {
            self.next();
        }
        let start = left.span;
        let expr = Box::new(left);
        let kind = if self.take_word("BETWEEN") {
            self.take_word("ASYMMETRIC");
            let low = Box::new(self.concat()?);
            self.expect_word("AND")?;
            ExprKind::Between { expr, low, high: Box::new(self.concat()?), negated }
        } else if self.take_word("IN") {
            self.expect(&Token::LParen)?;
            if self.is_word("SELECT") {
                let message = "IN (SELECT …) is a semi join, which is not supported yet";
                return Err(Diagnostic::new(self.span(), message).hint("list the values"));
            }
            let list = self.expr_list()?;
            ExprKind::In { expr, list, negated }
        } else if self.is_word("LIKE") || self.is_word("SIMILAR") {
            let similar = self.next().token.to_string().eq_ignore_ascii_case("SIMILAR");
            if similar {
                self.expect_word("TO")?;
            }
            let pattern = Box::new(self.concat()?);
            let escape =
                if self.take_word("ESCAPE") { Some(self.string("one character")?) } else { None };
            ExprKind::Like { expr, pattern, escape, similar, negated }
        } else {
            return Ok((*expr, false));
        };
        Ok((Expr { span: start.to(self.last_span()), kind }, true))
    }

    fn is_predicate(&mut self, left: Expr) -> Parsed<Expr> {
        let negated = self.take_word("NOT");
        let start = left.span;
        let expr = Box::new(left);
        let kind = if self.take_word("NULL") {
            ExprKind::IsNull { expr, negated }
        } else if self.take_word("TRUE") {
            ExprKind::IsTruth { expr, truth: true, negated }
        } else if self.take_word("FALSE") {
            ExprKind::IsTruth { expr, truth: false, negated }
        } else if self.take_words(&["DISTINCT", "FROM"]) {
            ExprKind::IsDistinct { left: expr, right: Box::new(self.concat()?), negated }
        } else if self.take_word("UNKNOWN") {
            ExprKind::IsNull { expr, negated }
        } else {
            return Err(self.unexpected("NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM after IS"));
        };
        Ok(Expr { span: start.to(self.last_span()), kind })
    }

    fn concat(&mut self) -> Parsed<Expr> {
        let mut left = self.sum()?;
        while self.peek().token == Token::StringConcat {
            self.next();
            left = binary(Op::Concat, left, self.sum()?);
        }
        Ok(left)
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.product()?;
        loop {
            let op = match self.peek().token {
                Token::Plus => Op::Plus,
                Token::Minus => Op::Minus,
                _ => return Ok(left),
            };
            self.next();
            left = binary(op, left, self.product()?);
        }
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.sign()?;
        loop {
            let op = match self.peek().token {
                Token::Mul => Op::Multiply,
                Token::Div => Op::Divide,
                Token::Mod => Op::Modulo,
                _ => return Ok(left),
            };
            self.next();
            left = binary(op, left, self.sign()?);
        }
    }

    fn sign(&mut self) -> Parsed<Expr> {
        let start = self.span();
        if self.take(&Token::Minus) {
            let inner = self.nested(Cursor::sign)?;
            let span = start.to(inner.span);
            return Ok(match inner.kind {
                ExprKind::Value(Value::Number(n)) if !n.starts_with('-') => {
                    Expr { span, kind: ExprKind::Value(Value::Number(format!("-{n}"))) }
                }
                kind => {
                    let inner = Expr { span: inner.span, kind };
                    Expr { span, kind: ExprKind::Negate(Box::new(inner)) }
                }
            });
        }
        if self.take(&Token::Plus) {
            return self.nested(Cursor::sign);
        }
        self.postfix()
    }

    fn postfix(&mut self) -> Parsed<Expr> {
        let mut expr = self.primary()?;
        loop {
            if self.take(&Token::LBracket) {
                let index = Box::new(self.expr()?);
                self.expect(&Token::RBracket)?;
                let span = expr.span.to(self.last_span());
                expr = Expr { span, kind: ExprKind::Element { expr: Box::new(expr), index } };
            } else if self.peek().token == Token::Period {
                self.next();
                let name = self.name("a field")?;
                let span = expr.span.to(name.span);
                expr = Expr { span, kind: ExprKind::Field { expr: Box::new(expr), name } };
            } else {
                return Ok(expr);
            }
        }
    }

    fn value(&mut self, value: Value) -> Expr {
        let span = self.next().span;
        Expr { span, kind: ExprKind::Value(value) }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let start = self.span();
        match self.peek().token.clone() {
            Token::Number(text, _) => Ok(self.value(Value::Number(text))),
            Token::SingleQuotedString(text) => Ok(self.value(Value::String(text))),
            Token::LParen => {
                self.next();
                if self.is_word("SELECT") {
                    let message = "a subquery as a value is not supported";
                    return Err(Diagnostic::new(start, message));
                }
                let mut list = self.expr_list()?;
                let span = start.to(self.last_span());
                Ok(match list.len() {
                    1 => list.swap_remove(0),
                    _ => Expr { span, kind: ExprKind::Row(list) },
                })
            }
            Token::Word(w) => self.word_expr(&w),
            _ => Err(self.unexpected("an expression")),
        }
    }

    fn word_expr(&mut self, word: &Word) -> Parsed<Expr> {
        let start = self.span();
        let upper =
            if word.quote_style.is_none() { word.value.to_uppercase() } else { String::new() };
        let quoted_next = matches!(self.peek_at(1).token, Token::SingleQuotedString(_));
        match upper.as_str() {
            "NULL" => Ok(self.value(Value::Null)),
            "TRUE" => Ok(self.value(Value::Boolean(true))),
            "FALSE" => Ok(self.value(Value::Boolean(false))),
            "INTERVAL" => self.interval(),
            "CASE" => self.case(),
            "CAST" | "TRY_CAST" if self.peek_at(1).token == Token::LParen => self.cast(),
            "EXISTS" => {
                let message = "EXISTS (SELECT …) is a semi join, which is not supported yet";
                Err(Diagnostic::new(start, message))
            }
            "DATE" | "TIME" | "TIMESTAMP" if quoted_next => {
                self.next();
                let text = self.string("a literal")?;
                let value = match upper.as_str() {
                    "DATE" => Value::Date(text.text),
                    "TIME" => Value::Time(text.text),
                    _ => Value::Timestamp(text.text),
                };
                Ok(Expr { span: start.to(text.span), kind: ExprKind::Value(value) })
            }
            upper if BARE.contains(&upper) && self.peek_at(1).token != Token::LParen => {
                self.next();
                let name = Name { text: upper.to_owned(), span: start };
                Ok(call(name, Vec::new(), start))
            }
            _ if self.peek_at(1).token == Token::LParen => self.call(),
            _ => self.path(),
        }
    }

    fn path(&mut self) -> Parsed<Expr> {
        let first = self.name("an expression")?;
        let start = first.span;
        let mut names = vec![first];
        while self.peek().token == Token::Period {
            self.next();
            names.push(self.name("a column or field")?);
        }
        Ok(Expr { span: start.to(self.last_span()), kind: ExprKind::Path(names) })
    }

    /// Expressions by comma, up to the closing parenthesis, which is taken.
    fn expr_list(&mut self) -> Parsed<Vec<Expr>> {
        let mut list = Vec::new();
        if self.take(&Token::RParen) {
            return Ok(list);
        }
        loop {
            list.push(self.expr()?);
            if !self.take(&Token::Comma) {
                break;
            }
        }
        if self.peek().token != Token::RParen {
            return Err(self.unexpected("`,` or `)`"));
        }
        self.next();
        Ok(list)
    }

    fn case(&mut self) -> Parsed<Expr> {
        let start = self.expect_word("CASE")?;
        let operand = if self.is_word("WHEN") { None } else { Some(Box::new(self.expr()?)) };
        let mut whens = Vec::new();
        while self.take_word("WHEN") {
            let when = self.expr()?;
            self.expect_word("THEN")?;
            whens.push((when, self.expr()?));
        }
        if whens.is_empty() {
            return Err(self.unexpected("`WHEN`"));
        }
        let otherwise = if self.take_word("ELSE") { Some(Box::new(self.expr()?)) } else { None };
        self.expect_word("END")?;
        let kind = ExprKind::Case { operand, whens, otherwise };
        Ok(Expr { span: start.to(self.last_span()), kind })
    }

    fn cast(&mut self) -> Parsed<Expr> {
        let word = self.next();
        let safe = word.token.to_string().eq_ignore_ascii_case("TRY_CAST");
        self.expect(&Token::LParen)?;
        let expr = Box::new(self.expr()?);
        self.expect_word("AS")?;
        let data_type = self.data_type()?;
        self.expect(&Token::RParen)?;
        let kind = ExprKind::Cast { expr, data_type, safe };
        Ok(Expr { span: word.span.to(self.last_span()), kind })
    }

    fn call(&mut self) -> Parsed<Expr> {
        let token = self.next();
        let Token::Word(word) = token.token else { return Err(self.unexpected("a function")) };
        let callable = ["LEFT", "RIGHT", "ROW", "SET"];
        let upper = word.value.to_uppercase();
        if word.quote_style.is_none()
            && is_reserved(&word.value)
            && !callable.contains(&upper.as_str())
        {
            let message = format!("`{}` is a reserved word and no function", word.value);
            return Err(Diagnostic::new(token.span, message));
        }
        let name = Name { text: word.value, span: token.span };
        self.expect(&Token::LParen)?;
        let start = name.span;
        match upper.as_str() {
            "ROW" => {
                let list = self.expr_list()?;
                return Ok(Expr { span: start.to(self.last_span()), kind: ExprKind::Row(list) });
            }
            "EXTRACT" => return self.unit_first(name, "FROM"),
            "FLOOR" | "CEIL" | "CEILING" => return self.rounding(name),
            "TIMESTAMPDIFF" | "TIMESTAMPADD" => return self.unit_first(name, ","),
            "POSITION" => {
                let needle = self.concat()?;
                self.expect_word("IN")?;
                let args = vec![needle, self.expr()?];
                self.expect(&Token::RParen)?;
                return Ok(call(name, args, self.last_span()));
            }
            "TRIM" => return self.trim(name),
            "SUBSTRING" => return self.substring(name),
            "OVERLAY" => return Err(Diagnostic::new(start, "OVERLAY is not supported")),
            _ => {}
        }
        self.plain_call(name)
    }

    fn plain_call(&mut self, name: Name) -> Parsed<Expr> {
        let distinct = self.take_word("DISTINCT");
        if !distinct {
            self.take_word("ALL");
        }
        let star = self.peek().token == Token::Mul && self.peek_at(1).token == Token::RParen;
        let args = if star {
            self.next();
            self.next();
            Vec::new()
        } else {
            self.expr_list()?
        };
        let mut span = name.span.to(self.last_span());
        if self.is_word("WITHIN") {
            return Err(Diagnostic::new(self.span(), "WITHIN GROUP is not supported"));
        }
        let mut filter = None;
        if self.is_word("FILTER") && self.peek_at(1).token == Token::LParen {
            self.next();
            self.next();
            self.expect_word("WHERE")?;
            filter = Some(Box::new(self.expr()?));
            self.expect(&Token::RParen)?;
            span = name.span.to(self.last_span());
        }
        if self.is_word("OVER") {
            let message = format!("`{} … OVER` is not supported yet", name.text.to_uppercase());
            let hint = "aggregate in a window: GROUP BY …, TUMBLE(ts, INTERVAL …) or HOP, SESSION";
            return Err(Diagnostic::new(self.span(), message).hint(hint));
        }
        Ok(Expr { span, kind: ExprKind::Call(Call { name, distinct, star, args, filter }) })
    }

    /// `EXTRACT(HOUR FROM ts)`, `TIMESTAMPDIFF(HOUR, a, b)`: the unit becomes a string argument.
    fn unit_first(&mut self, name: Name, separator: &str) -> Parsed<Expr> {
        let unit = self.unit_word()?;
        if separator == "FROM" {
            self.expect_word("FROM")?;
        } else {
            self.expect(&Token::Comma)?;
        }
        let mut args = vec![unit];
        args.extend(self.expr_list()?);
        Ok(call(name, args, self.last_span()))
    }

    fn unit_word(&mut self) -> Parsed<Expr> {
        match self.peek().token.clone() {
            Token::Word(w) => Ok(self.value(Value::String(w.value.to_uppercase()))),
            _ => Err(self.unexpected("a unit of time")),
        }
    }

    /// `FLOOR(x)`, `FLOOR(ts TO HOUR)`.
    fn rounding(&mut self, name: Name) -> Parsed<Expr> {
        let first = self.expr()?;
        let mut args = vec![first];
        if self.take_word("TO") {
            args.push(self.unit_word()?);
        } else {
            while self.take(&Token::Comma) {
                args.push(self.expr()?);
            }
        }
        self.expect(&Token::RParen)?;
        Ok(call(name, args, self.last_span()))
    }

    /// `TRIM(x)`, `TRIM(BOTH 'x' FROM y)`: three arguments in the longer form.
    fn trim(&mut self, name: Name) -> Parsed<Expr> {
        let sides = ["BOTH", "LEADING", "TRAILING"];
        let side = sides.iter().find(|side| self.is_word(side)).copied();
        let span = self.span();
        if side.is_some() {
            self.next();
        }
        let side = Value::String(side.unwrap_or("BOTH").to_owned());
        let side = Expr { span, kind: ExprKind::Value(side) };
        let space = Expr { span, kind: ExprKind::Value(Value::String(" ".to_owned())) };
        let args = if self.take_word("FROM") {
            vec![side, space, self.expr()?]
        } else {
            let first = self.expr()?;
            if self.take_word("FROM") {
                vec![side, first, self.expr()?]
            } else {
                vec![side, space, first]
            }
        };
        self.expect(&Token::RParen)?;
        Ok(call(name, args, self.last_span()))
    }

    /// `SUBSTRING(x, 1, 2)`, `SUBSTRING(x FROM 1 FOR 2)`.
    fn substring(&mut self, name: Name) -> Parsed<Expr> {
        let mut args = vec![self.expr()?];
        if self.take_word("FROM") {
            args.push(self.expr()?);
            if self.take_word("FOR") {
                args.push(self.expr()?);
            }
        } else {
            while self.take(&Token::Comma) {
                args.push(self.expr()?);
            }
        }
        self.expect(&Token::RParen)?;
        Ok(call(name, args, self.last_span()))
    }
}

fn call(name: Name, args: Vec<Expr>, last: Span) -> Expr {
    let span = name.span.to(last);
    let call = Call { name, distinct: false, star: false, args, filter: None };
    Expr { span, kind: ExprKind::Call(call) }
}
