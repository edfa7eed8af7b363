//! Types as Flink spells them, to Arrow's.
//!
//! TIMESTAMP(p) has no zone, TIMESTAMP_LTZ(p) the zone `UTC`; p ≤ 3 is in milliseconds, ≤ 6 in
//! microseconds, ≤ 9 in nanoseconds. Lengths of CHAR, VARCHAR, BINARY are not enforced.

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use sqlparser::tokenizer::{Token, Word};
use std::sync::Arc;

use super::Parsed;
use crate::diagnostics::{Diagnostic, Span};
use crate::tokens::Cursor;

const TYPES: &[&str] = &[
    "STRING",
    "VARCHAR",
    "CHAR",
    "BOOLEAN",
    "BYTES",
    "BINARY",
    "VARBINARY",
    "DECIMAL",
    "NUMERIC",
    "DEC",
    "TINYINT",
    "SMALLINT",
    "INT",
    "INTEGER",
    "BIGINT",
    "FLOAT",
    "DOUBLE",
    "DATE",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMP_LTZ",
    "ARRAY",
    "MAP",
    "ROW",
];

impl Cursor {
    /// A type.
    pub(super) fn data_type(&mut self) -> Parsed<DataType> {
        self.nested(Cursor::data_type_inner)
    }

    fn data_type_inner(&mut self) -> Parsed<DataType> {
        let span = self.span();
        let word = match &self.peek().token {
            Token::Word(Word { value, quote_style: None, .. }) => value.clone(),
            _ => return Err(self.unexpected("a type")),
        };
        self.next();
        let base = match word.to_uppercase().as_str() {
            "STRING" => DataType::Utf8,
            "VARCHAR" | "CHAR" => self.with_length(DataType::Utf8)?,
            "BOOLEAN" => DataType::Boolean,
            "BYTES" => DataType::Binary,
            "BINARY" | "VARBINARY" => self.with_length(DataType::Binary)?,
            "TINYINT" => DataType::Int8,
            "SMALLINT" => DataType::Int16,
            "INT" | "INTEGER" => DataType::Int32,
            "BIGINT" => DataType::Int64,
            "FLOAT" => DataType::Float32,
            "DOUBLE" => {
                self.take_word("PRECISION");
                DataType::Float64
            }
            "DATE" => DataType::Date32,
            "TIME" => self.with_length(DataType::Time32(TimeUnit::Millisecond))?,
            "DECIMAL" | "NUMERIC" | "DEC" => self.decimal(span)?,
            "TIMESTAMP" => self.timestamp(span)?,
            "TIMESTAMP_LTZ" => zoned(self.precision(6, 9)?),
            "ARRAY" => {
                self.expect(&Token::Lt)?;
                let element = self.data_type()?;
                self.take_words(&["NOT", "NULL"]);
                self.expect(&Token::Gt)?;
                DataType::new_list(element, true)
            }
            "MAP" => self.map()?,
            "ROW" => self.row()?,
            _ => {
                let message = format!("unknown type `{word}`");
                return Err(Diagnostic::new(span, message).meant(&word, TYPES.iter().copied()));
            }
        };
        Ok(if self.take_word("ARRAY") { DataType::new_list(base, true) } else { base })
    }

    fn with_length(&mut self, data_type: DataType) -> Parsed<DataType> {
        if self.take(&Token::LParen) {
            self.whole_number()?;
            self.expect(&Token::RParen)?;
        }
        Ok(data_type)
    }

    fn whole_number(&mut self) -> Parsed<u64> {
        match &self.peek().token {
            Token::Number(text, _) => match text.parse() {
                Ok(number) => {
                    self.next();
                    Ok(number)
                }
                Err(_) => Err(self.unexpected("a whole number")),
            },
            _ => Err(self.unexpected("a whole number")),
        }
    }

    fn precision(&mut self, default: u64, max: u64) -> Parsed<u64> {
        if !self.take(&Token::LParen) {
            return Ok(default);
        }
        let span = self.span();
        let precision = self.whole_number()?;
        self.expect(&Token::RParen)?;
        if precision > max {
            return Err(Diagnostic::new(span, format!("the precision must be {max} at most")));
        }
        Ok(precision)
    }

    fn decimal(&mut self, span: Span) -> Parsed<DataType> {
        let (mut precision, mut scale) = (10, 0);
        if self.take(&Token::LParen) {
            precision = self.whole_number()?;
            if self.take(&Token::Comma) {
                scale = self.whole_number()?;
            }
            self.expect(&Token::RParen)?;
        }
        if !(1..=38).contains(&precision) || scale > precision {
            let message = format!(
                "DECIMAL({precision}, {scale}) is no type: 1 ≤ precision ≤ 38, scale ≤ precision"
            );
            return Err(Diagnostic::new(span.to(self.last_span()), message));
        }
        Ok(DataType::Decimal128(precision as u8, scale as i8))
    }

    fn timestamp(&mut self, _span: Span) -> Parsed<DataType> {
        let precision = self.precision(6, 9)?;
        self.take_words(&["WITHOUT", "TIME", "ZONE"]);
        if self.take_words(&["WITH", "LOCAL", "TIME", "ZONE"]) {
            return Ok(zoned(precision));
        }
        if self.are_words(&["WITH", "TIME", "ZONE"]) {
            let message = "TIMESTAMP WITH TIME ZONE is not supported";
            return Err(Diagnostic::new(self.span(), message).hint("write TIMESTAMP_LTZ"));
        }
        Ok(DataType::Timestamp(unit(precision), None))
    }

    fn map(&mut self) -> Parsed<DataType> {
        self.expect(&Token::Lt)?;
        let key = self.data_type()?;
        self.take_words(&["NOT", "NULL"]);
        self.expect(&Token::Comma)?;
        let value = self.data_type()?;
        self.take_words(&["NOT", "NULL"]);
        self.expect(&Token::Gt)?;
        let entry = vec![Field::new("keys", key, false), Field::new("values", value, true)];
        let entries = Field::new("entries", DataType::Struct(Fields::from(entry)), false);
        Ok(DataType::Map(Arc::new(entries), false))
    }

    fn row(&mut self) -> Parsed<DataType> {
        let close = if self.take(&Token::Lt) {
            Token::Gt
        } else {
            self.expect(&Token::LParen)?;
            Token::RParen
        };
        let mut fields = Vec::new();
        loop {
            let name = self.name("a field name")?;
            let data_type = self.data_type()?;
            let nullable = !self.take_words(&["NOT", "NULL"]);
            if matches!(self.peek().token, Token::SingleQuotedString(_)) {
                self.next();
            }
            fields.push(Field::new(name.text, data_type, nullable));
            if !self.take(&Token::Comma) {
                break;
            }
        }
        self.expect(&close)?;
        Ok(DataType::Struct(Fields::from(fields)))
    }
}

fn unit(precision: u64) -> TimeUnit {
    match precision {
        0..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        _ => TimeUnit::Nanosecond,
    }
}

fn zoned(precision: u64) -> DataType {
    DataType::Timestamp(unit(precision), Some("UTC".into()))
}
