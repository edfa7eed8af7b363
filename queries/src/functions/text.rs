//! String functions. Positions and lengths count characters, from 1.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int32Array, StringArray};
use arrow::datatypes::{Int32Type, Int64Type};
use regex::Regex;
use std::collections::HashMap;
use std::sync::Arc;

type Done = Result<ArrayRef, String>;

/// Evaluates a string function; `None` if the name is none.
pub(super) fn run(name: &str, args: &[ArrayRef]) -> Option<Done> {
    Some(match name {
        "UPPER" => one(args, str::to_uppercase),
        "LOWER" => one(args, str::to_lowercase),
        "INITCAP" => one(args, initcap),
        "REVERSE" => one(args, |s| s.chars().rev().collect()),
        "LTRIM" => one(args, |s| s.trim_start_matches(' ').to_owned()),
        "RTRIM" => one(args, |s| s.trim_end_matches(' ').to_owned()),
        "BTRIM" => one(args, |s| s.trim_matches(' ').to_owned()),
        "CHAR_LENGTH" | "CHARACTER_LENGTH" => int(args, |s| s.chars().count() as i32),
        "ASCII" => int(args, |s| s.bytes().next().map_or(0, i32::from)),
        "CHR" => chr(args),
        "TRIM" => texts(args, |row| Some(trim(row.text(0), row.text(1), row.text(2)))),
        "REPLACE" => texts(args, |row| Some(replace(row.text(0), row.text(1), row.text(2)))),
        "SUBSTRING" | "SUBSTR" => texts(args, substring),
        "LEFT" => texts(args, |r| Some(r.text(0).chars().take(r.count(1)).collect())),
        "RIGHT" => texts(args, |r| {
            let all = r.text(0).chars().count();
            Some(r.text(0).chars().skip(all.saturating_sub(r.count(1))).collect())
        }),
        "LPAD" => texts(args, |r| pad(r, true)),
        "RPAD" => texts(args, |r| pad(r, false)),
        "REPEAT" => texts(args, |r| Some(r.text(0).repeat(r.count(1)))),
        "POSITION" => ints(args, |r| position(r.text(0), r.text(1), 1)),
        "INSTR" => ints(args, |r| position(r.text(1), r.text(0), 1)),
        "LOCATE" => ints(args, |r| {
            let from = if r.args.len() > 2 { r.int(2) } else { 1 };
            position(r.text(0), r.text(1), from)
        }),
        "STARTSWITH" => booleans(args, |r| r.text(0).starts_with(r.text(1))),
        "ENDSWITH" => booleans(args, |r| r.text(0).ends_with(r.text(1))),
        "SPLIT_INDEX" => texts(args, split_index),
        "REGEXP" | "SIMILAR" => regexp(args, name == "SIMILAR"),
        "REGEXP_EXTRACT" => regexp_extract(args),
        "REGEXP_REPLACE" => regexp_replace(args),
        "CONCAT" => texts(args, |r| Some((0..r.args.len()).map(|i| r.text(i)).collect())),
        "CONCAT_WS" => concat_ws(args),
        _ => return None,
    })
}

/// One row of the arguments, none of them NULL.
struct Row<'a> {
    args: &'a [ArrayRef],
    row: usize,
}

impl<'a> Row<'a> {
    fn text(&self, arg: usize) -> &'a str {
        self.args[arg].as_string::<i32>().value(self.row)
    }

    fn int(&self, arg: usize) -> i32 {
        self.args[arg].as_primitive::<Int32Type>().value(self.row)
    }

    fn count(&self, arg: usize) -> usize {
        usize::try_from(self.int(arg)).unwrap_or(0)
    }
}

fn rows<'a, T>(
    args: &'a [ArrayRef],
    each: impl Fn(&Row<'a>) -> Option<T>,
) -> impl Iterator<Item = Option<T>> {
    let len = args.first().map_or(0, |a| a.len());
    (0..len).map(move |row| {
        let whole = args.iter().all(|a| a.is_valid(row));
        if whole { each(&Row { args, row }) } else { None }
    })
}

fn texts(args: &[ArrayRef], each: impl Fn(&Row<'_>) -> Option<String>) -> Done {
    Ok(Arc::new(rows(args, each).collect::<StringArray>()))
}

fn one(args: &[ArrayRef], each: impl Fn(&str) -> String) -> Done {
    texts(args, |row| Some(each(row.text(0))))
}

fn ints(args: &[ArrayRef], each: impl Fn(&Row<'_>) -> i32) -> Done {
    Ok(Arc::new(rows(args, |row| Some(each(row))).collect::<Int32Array>()))
}

fn int(args: &[ArrayRef], each: impl Fn(&str) -> i32) -> Done {
    ints(args, |row| each(row.text(0)))
}

fn booleans(args: &[ArrayRef], each: impl Fn(&Row<'_>) -> bool) -> Done {
    Ok(Arc::new(rows(args, |row| Some(each(row))).collect::<BooleanArray>()))
}

fn initcap(text: &str) -> String {
    let mut start = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        start = !c.is_alphanumeric();
    }
    out
}

fn chr(args: &[ArrayRef]) -> Done {
    let codes = args[0].as_primitive::<Int64Type>();
    // Flink: a negative code is the empty string, one above 255 counts modulo 256.
    let text = |code: i64| match code {
        ..0 => String::new(),
        code => char::from((code & 0xff) as u8).to_string(),
    };
    Ok(Arc::new(codes.iter().map(|code| code.map(text)).collect::<StringArray>()))
}

fn trim(side: &str, what: &str, text: &str) -> String {
    let mut rest = text;
    if what.is_empty() {
        return rest.to_owned();
    }
    while side != "TRAILING" && rest.starts_with(what) {
        rest = &rest[what.len()..];
    }
    while side != "LEADING" && rest.ends_with(what) {
        rest = &rest[..rest.len() - what.len()];
    }
    rest.to_owned()
}

fn replace(text: &str, search: &str, by: &str) -> String {
    if search.is_empty() { text.to_owned() } else { text.replace(search, by) }
}

/// From 1; a negative start counts from the end; 0 is as 1.
fn substring(row: &Row<'_>) -> Option<String> {
    let text = row.text(0);
    let all = text.chars().count() as i64;
    let start = match i64::from(row.int(1)) {
        0 => 0,
        start if start > 0 => start - 1,
        start => all + start,
    };
    let length = if row.args.len() > 2 { i64::from(row.int(2)) } else { i64::MAX };
    if length < 0 {
        return None;
    }
    let end = start.saturating_add(length).clamp(0, all);
    if start < 0 || start >= all {
        return Some(String::new());
    }
    Some(text.chars().skip(start as usize).take((end - start).max(0) as usize).collect())
}

fn pad(row: &Row<'_>, left: bool) -> Option<String> {
    let (text, length, with) = (row.text(0), row.int(1), row.text(2));
    let length = usize::try_from(length).ok()?;
    let have = text.chars().count();
    if have >= length {
        return Some(text.chars().take(length).collect());
    }
    if with.is_empty() {
        return None;
    }
    let padding: String = with.chars().cycle().take(length - have).collect();
    Some(if left { padding + text } else { text.to_owned() + &padding })
}

fn position(search: &str, text: &str, from: i32) -> i32 {
    let skip = usize::try_from(from.max(1) - 1).unwrap_or(0);
    let start = text.char_indices().nth(skip).map_or(text.len(), |(at, _)| at);
    match text[start..].find(search) {
        Some(at) => (text[..start + at].chars().count() + 1) as i32,
        None => 0,
    }
}

fn split_index(row: &Row<'_>) -> Option<String> {
    let index = usize::try_from(row.int(2)).ok()?;
    let (text, separator) = (row.text(0), row.text(1));
    if text.is_empty() {
        return None;
    }
    if separator.is_empty() {
        let parts: Vec<&str> = text.split_whitespace().collect();
        return parts.get(index).map(|p| (*p).to_owned());
    }
    text.split(separator).nth(index).map(str::to_owned)
}

/// Compiles each pattern once a chunk; a pattern that doesn't compile has no match.
#[derive(Default)]
struct Patterns(HashMap<String, Option<Regex>>);

impl Patterns {
    fn get(&mut self, pattern: &str, similar: bool) -> Option<&Regex> {
        if !self.0.contains_key(pattern) {
            let made = if similar { similar_to(pattern) } else { pattern.to_owned() };
            self.0.insert(pattern.to_owned(), Regex::new(&made).ok());
        }
        self.0.get(pattern)?.as_ref()
    }
}

/// SQL's SIMILAR TO as a regular expression for the whole string.
fn similar_to(pattern: &str) -> String {
    let mut out = String::from("(?s)^(?:");
    for c in pattern.chars() {
        match c {
            '%' => out.push_str(".*"),
            '_' => out.push('.'),
            '.' | '^' | '$' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out + ")$"
}

fn regexp(args: &[ArrayRef], similar: bool) -> Done {
    let mut patterns = Patterns::default();
    let (texts, with) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
    let each = |(text, pattern): (Option<&str>, Option<&str>)| {
        let (text, pattern) = (text?, pattern?);
        Some(patterns.get(pattern, similar).is_some_and(|p| p.is_match(text)))
    };
    Ok(Arc::new(texts.iter().zip(with).map(each).collect::<BooleanArray>()))
}

fn regexp_extract(args: &[ArrayRef]) -> Done {
    let mut patterns = Patterns::default();
    let (texts, with) = (args[0].as_string::<i32>(), args[1].as_string::<i32>());
    let each = |row: usize| {
        if args.iter().any(|a| a.is_null(row)) {
            return None;
        }
        let group = args.get(2).map_or(0, |g| g.as_primitive::<Int32Type>().value(row));
        let captures = patterns.get(with.value(row), false)?.captures(texts.value(row))?;
        Some(captures.get(usize::try_from(group).ok()?)?.as_str().to_owned())
    };
    Ok(Arc::new((0..texts.len()).map(each).collect::<StringArray>()))
}

fn regexp_replace(args: &[ArrayRef]) -> Done {
    let mut patterns = Patterns::default();
    let column = |i: usize| args[i].as_string::<i32>();
    let each = |row: usize| {
        if args.iter().any(|a| a.is_null(row)) {
            return None;
        }
        let pattern = patterns.get(column(1).value(row), false)?;
        // Java writes groups as $1; `${1}` is the same here, also before a letter.
        let by = java_groups(column(2).value(row));
        Some(pattern.replace_all(column(0).value(row), by.as_str()).into_owned())
    };
    Ok(Arc::new((0..args[0].len()).map(each).collect::<StringArray>()))
}

fn java_groups(by: &str) -> String {
    let mut out = String::new();
    let mut chars = by.chars().peekable();
    while let Some(c) = chars.next() {
        let digit = chars.peek().is_some_and(char::is_ascii_digit);
        match (c, digit) {
            ('$', true) => {
                let group = chars.next().unwrap_or('0');
                out.push_str(&format!("${{{group}}}"));
            }
            ('$', false) => out.push_str("$$"),
            ('\\', _) => out.extend(chars.next()),
            (c, _) => out.push(c),
        }
    }
    out
}

/// NULL strings are left out; a NULL separator gives NULL.
fn concat_ws(args: &[ArrayRef]) -> Done {
    let each = |row: usize| {
        let text =
            |a: &ArrayRef| a.is_valid(row).then(|| a.as_string::<i32>().value(row).to_owned());
        let separator = text(&args[0])?;
        Some(args[1..].iter().filter_map(text).collect::<Vec<_>>().join(&separator))
    };
    Ok(Arc::new((0..args[0].len()).map(each).collect::<StringArray>()))
}
