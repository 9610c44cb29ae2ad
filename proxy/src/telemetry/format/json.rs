//! `json_format`: a JSON object whose strings are format strings. A string that is one operator takes the
//! operator's type: numbers stay numbers, an absent value is null.

use remora_xds::pb::google::protobuf::{Struct, Value, value::Kind};

use super::{Absent, Format, FormatError, Op, parse};
use crate::telemetry::record::AccessRecord;

/// How deep objects may be nested.
const MAX_DEPTH: usize = 32;

/// A compiled JSON format. Keys are written in alphabetical order, as in Envoy.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonFormat {
    root: Vec<(Box<[u8]>, Node)>,
    absent: Absent,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Object(Vec<(Box<[u8]>, Self)>),
    List(Vec<Self>),
    /// JSON that needs no record.
    Constant(Box<[u8]>),
    /// One operator: typed.
    Typed(Op),
    /// Several operators or text around one: always a string.
    Text(Format),
}

impl JsonFormat {
    /// Compiles `format`.
    ///
    /// # Errors
    /// The path of the first wrong value, such as `a.b[0]`, and what is wrong with it.
    pub fn compile(format: &Struct, absent: Absent) -> Result<Self, (String, FormatError)> {
        Ok(Self { root: object(format, absent, "", 0)?, absent })
    }

    /// Appends one line: a JSON object and a line feed.
    pub fn render(&self, record: &AccessRecord<'_>, out: &mut Vec<u8>) {
        render_object(&self.root, record, self.absent, out);
        out.push(b'\n');
    }
}

type Fields = Vec<(Box<[u8]>, Node)>;

fn object(
    format: &Struct,
    absent: Absent,
    path: &str,
    depth: usize,
) -> Result<Fields, (String, FormatError)> {
    let mut names: Vec<&String> = format.fields.keys().collect();
    names.sort_unstable();
    let mut fields = Vec::with_capacity(names.len());
    for name in names {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let node = node(&format.fields[name], absent, &at, depth + 1)?;
        let mut key = Vec::with_capacity(name.len() + 3);
        quote(&mut key, name.as_bytes());
        key.push(b':');
        fields.push((key.into(), node));
    }
    Ok(fields)
}

fn node(value: &Value, absent: Absent, at: &str, depth: usize) -> Result<Node, (String, FormatError)> {
    if depth > MAX_DEPTH {
        let message = format!("nested more than {MAX_DEPTH} deep");
        return Err((at.to_owned(), FormatError { operator: String::from("json_format"), message }));
    }
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Node::Constant((*b"null").into()),
        Some(Kind::BoolValue(b)) => Node::Constant(b.to_string().into_bytes().into()),
        Some(Kind::NumberValue(n)) => Node::Constant(number(*n).into_bytes().into()),
        Some(Kind::StructValue(inner)) => Node::Object(object(inner, absent, at, depth)?),
        Some(Kind::ListValue(list)) => {
            let item = |(i, v): (usize, &Value)| node(v, absent, &format!("{at}[{i}]"), depth + 1);
            Node::List(list.values.iter().enumerate().map(item).collect::<Result<_, _>>()?)
        }
        Some(Kind::StringValue(text)) => {
            let mut ops = parse::parse(text).map_err(|e| (at.to_owned(), e))?;
            match (ops.len(), ops.pop()) {
                (0, _) | (_, None) => Node::Constant((*b"\"\"").into()),
                (1, Some(Op::Literal(text))) => {
                    let mut quoted = Vec::new();
                    quote(&mut quoted, &text);
                    Node::Constant(quoted.into())
                }
                (1, Some(op)) => Node::Typed(op),
                (_, Some(last)) => {
                    ops.push(last);
                    Node::Text(Format { ops: ops.into(), absent })
                }
            }
        }
    })
}

/// Whole numbers are written without a fraction.
fn number(n: f64) -> String {
    serde_json::Number::from_f64(n).map_or_else(
        || String::from("null"),
        |number| {
            let text = number.to_string();
            text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
        },
    )
}

fn render_object(fields: &Fields, record: &AccessRecord<'_>, absent: Absent, out: &mut Vec<u8>) {
    out.push(b'{');
    let start = out.len();
    for (key, node) in fields {
        let before = out.len();
        if before > start {
            out.push(b',');
        }
        out.extend_from_slice(key);
        if !node.render(record, absent, out) {
            out.truncate(before);
        }
    }
    out.push(b'}');
}

impl Node {
    /// Appends the value; false when it is to be left out, with rubbish behind it that the caller cuts off.
    fn render(&self, record: &AccessRecord<'_>, absent: Absent, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Constant(json) => out.extend_from_slice(json),
            Self::Object(fields) => {
                let before = out.len();
                render_object(fields, record, absent, out);
                // An object whose values are all left out is left out as well.
                return absent == Absent::Dash || fields.is_empty() || out.len() > before + 2;
            }
            Self::List(items) => {
                out.push(b'[');
                let start = out.len();
                for item in items {
                    let before = out.len();
                    if before > start {
                        out.push(b',');
                    }
                    if !item.render(record, absent, out) {
                        out.truncate(before);
                    }
                }
                out.push(b']');
            }
            Self::Typed(op) if op.is_number() => {
                if !op.render(record, out) {
                    return null(absent, out);
                }
            }
            Self::Typed(op) => {
                let start = out.len();
                out.push(b'"');
                if !op.render(record, out) {
                    out.truncate(start);
                    return null(absent, out);
                }
                escape_from(out, start + 1);
                out.push(b'"');
            }
            Self::Text(format) => {
                let start = out.len();
                out.push(b'"');
                format.render(record, out);
                escape_from(out, start + 1);
                out.push(b'"');
            }
        }
        true
    }
}

fn null(absent: Absent, out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(b"null");
    absent == Absent::Dash
}

/// Appends `text` as a JSON string.
fn quote(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.extend_from_slice(text);
    escape_from(out, start);
    out.push(b'"');
}

/// Makes what stands from `start` on the inside of a JSON string (RFC 8259 §7). Hardly any value needs it, so a
/// clean one costs a scan and no copy. Bytes that are not UTF-8 become U+FFFD.
fn escape_from(out: &mut Vec<u8>, start: usize) {
    let plain = |b: &u8| (0x20..0x80).contains(b) && !matches!(b, b'"' | b'\\') && *b != 0x7f;
    if out[start..].iter().all(plain) {
        return;
    }
    let raw = out.split_off(start);
    for c in String::from_utf8_lossy(&raw).chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if u32::from(c) < 0x20 || c == '\x7f' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}
