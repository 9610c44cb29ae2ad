//! Text -> operators. The grammar is Envoy's: `%NAME%`, `%NAME(ARGUMENT)%`, `%NAME(ARGUMENT):LENGTH%`, `%%`.

use http::HeaderName;

use super::fields::{self, Field};
use super::time::TimeFormat;
use super::{FormatError, GrpcStyle, HeaderRef, Op, Place};

/// One `%…%`, taken apart.
struct Command<'a> {
    /// From `%` to `%`.
    whole: &'a str,
    name: &'a str,
    argument: Option<&'a str>,
    length: Option<usize>,
}

pub(super) fn parse(text: &str) -> Result<Vec<Op>, FormatError> {
    let mut ops = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("%%") {
            literal.push('%');
            rest = after;
            continue;
        }
        let command = command(rest)?;
        rest = &rest[command.whole.len()..];
        flush(&mut literal, &mut ops);
        ops.push(compile(&command)?);
    }
    literal.push_str(rest);
    flush(&mut literal, &mut ops);
    Ok(ops)
}

fn flush(literal: &mut String, ops: &mut Vec<Op>) {
    if !literal.is_empty() {
        ops.push(Op::Literal(std::mem::take(literal).into_bytes().into()));
    }
}

/// Reads the command that `text` begins with; `text` begins with `%`.
fn command(text: &str) -> Result<Command<'_>, FormatError> {
    let wrong = || FormatError {
        operator: text.chars().take(40).collect(),
        message: "`%` must begin an operator such as %PROTOCOL% or %REQ(X)%; write %% for a percent sign"
            .to_owned(),
    };
    let mut rest = &text[1..];
    let end = rest
        .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .filter(|end| *end > 0)
        .ok_or_else(wrong)?;
    let name = &rest[..end];
    rest = &rest[end..];
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let close = inner.find(')').ok_or_else(wrong)?;
        argument = Some(&inner[..close]);
        rest = &inner[close + 1..];
    }
    let mut length = None;
    if let Some(inner) = rest.strip_prefix(':') {
        let digits = inner.find(|c: char| !c.is_ascii_digit()).unwrap_or(inner.len());
        length = Some(inner[..digits].parse().map_err(|_| wrong())?);
        rest = &inner[digits..];
    }
    rest = rest.strip_prefix('%').ok_or_else(wrong)?;
    Ok(Command { whole: &text[..text.len() - rest.len()], name, argument, length })
}

impl Command<'_> {
    fn error(&self, message: impl Into<String>) -> FormatError {
        FormatError { operator: self.whole.to_owned(), message: message.into() }
    }

    fn no_argument(&self) -> Result<(), FormatError> {
        match self.argument {
            Some(_) => Err(self.error("takes no argument")),
            None => Ok(()),
        }
    }

    fn no_length(&self) -> Result<(), FormatError> {
        match self.length {
            Some(_) => Err(self.error("takes no length")),
            None => Ok(()),
        }
    }

    fn max(&self) -> usize {
        self.length.unwrap_or(usize::MAX)
    }
}

fn compile(command: &Command<'_>) -> Result<Op, FormatError> {
    match command.name {
        "REQ" => header(command, Place::Request),
        "RESP" => header(command, Place::Response),
        "TRAILER" => header(command, Place::Trailer),
        "START_TIME" => {
            command.no_length()?;
            let format = TimeFormat::parse(command.argument.unwrap_or_default());
            format.map(Op::StartTime).map_err(|message| command.error(message))
        }
        "GRPC_STATUS" => {
            command.no_length()?;
            let style = match command.argument.unwrap_or_default() {
                "" | "CAMEL_STRING" => GrpcStyle::Camel,
                "SNAKE_STRING" => GrpcStyle::Snake,
                "NUMBER" => GrpcStyle::Number,
                _ => return Err(command.error("the argument is one of CAMEL_STRING, SNAKE_STRING, NUMBER")),
            };
            Ok(Op::Grpc(style))
        }
        "GRPC_STATUS_NUMBER" => {
            command.no_argument()?;
            command.no_length()?;
            Ok(Op::Grpc(GrpcStyle::Number))
        }
        "HOSTNAME" => {
            command.no_argument()?;
            Ok(Op::Constant { value: hostname().into(), max: command.max() })
        }
        name => field(command, name),
    }
}

fn field(command: &Command<'_>, name: &str) -> Result<Op, FormatError> {
    let Some(field) = Field::named(name) else {
        let known = fields::REFUSED.contains(&name);
        return Err(command.error(if known { "is not supported" } else { "unknown operator" }));
    };
    command.no_argument()?;
    if field.is_number() {
        command.no_length()?;
    }
    Ok(Op::Field { field, max: command.max() })
}

fn header(command: &Command<'_>, place: Place) -> Result<Op, FormatError> {
    let names = command.argument.filter(|names| !names.is_empty());
    let names = names.ok_or_else(|| command.error("needs a header name, such as %REQ(USER-AGENT)%"))?;
    let (main, alternative) = match names.split_once('?') {
        Some((main, alternative)) => (main, Some(alternative)),
        None => (names, None),
    };
    let read =
        |name: &str| header_ref(name.trim(), place).ok_or_else(|| command.error(bad_header(name, place)));
    let alternative = alternative.map(read).transpose()?;
    Ok(Op::Header { place, main: read(main)?, alternative, max: command.max() })
}

fn bad_header(name: &str, place: Place) -> String {
    let pseudo = match place {
        Place::Request => ":method, :path, :authority and :scheme",
        Place::Response => ":status",
        Place::Trailer => "none",
    };
    format!("`{name}` is not a header name (pseudo-headers here: {pseudo})")
}

fn header_ref(name: &str, place: Place) -> Option<HeaderRef> {
    if let Some(pseudo) = name.strip_prefix(':') {
        let lower = pseudo.to_ascii_lowercase();
        return match (place, lower.as_str()) {
            (Place::Request, "method") => Some(HeaderRef::Method),
            (Place::Request, "path") => Some(HeaderRef::Path),
            (Place::Request, "authority") => Some(HeaderRef::Authority),
            (Place::Request, "scheme") => Some(HeaderRef::Scheme),
            (Place::Response, "status") => Some(HeaderRef::Status),
            _ => None,
        };
    }
    // The head keeps Host as the authority (RFC 9113 §8.3.1).
    if place == Place::Request && name.eq_ignore_ascii_case("host") {
        return Some(HeaderRef::Authority);
    }
    HeaderName::from_bytes(name.as_bytes()).ok().map(HeaderRef::Named)
}

/// Name of this machine or pod; it does not change while we run.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "-".to_owned(), |name| name.trim().to_owned())
}
