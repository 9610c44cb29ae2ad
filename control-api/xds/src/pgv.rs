//! The rules that Envoy's API puts on its own fields (`validate.rules`, from protoc-gen-validate), read from the
//! descriptors and checked here, with the semantics of that generator: a scalar without presence is checked even when
//! it is not set, a message (wrappers and durations too) only when it is.

mod text;

use std::collections::HashSet;
use std::fmt::Display;

use prost_reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

use self::text::{BytesCheck, TextCheck};
use crate::diag::At;
use crate::duration;
use crate::pb::google::protobuf::{Duration, Timestamp};
use crate::pb::validate::field_rules::Type;
use crate::pb::validate::{AnyRules, EnumRules, FieldRules, MapRules, RepeatedRules};

/// Where broken rules go.
pub(crate) type Report<'r> = dyn FnMut(&At<'_>, String) + 'r;

/// The rules of one field, of the items of a list, or of the keys or values of a map.
#[derive(Debug)]
pub(crate) struct Rules {
    required: bool,
    /// The inside of the message is not checked.
    pub(crate) skip: bool,
    check: Check,
}

#[derive(Debug)]
enum Check {
    Nothing,
    Int(Range<i128>),
    Float(Range<f64>),
    /// Nanoseconds of a duration, or since the epoch.
    Time(Range<i128>),
    Bool(bool),
    Text(Box<TextCheck>),
    Bytes(Box<BytesCheck>),
    Enum(EnumRules),
    List(Box<ListCheck>),
    Map(Box<MapCheck>),
    Any(AnyRules),
}

#[derive(Debug)]
struct ListCheck {
    sizes: Sizes,
    unique: bool,
    ignore_empty: bool,
    items: Option<Rules>,
}

#[derive(Debug)]
struct MapCheck {
    sizes: Sizes,
    ignore_empty: bool,
    keys: Option<Rules>,
    values: Option<Rules>,
}

/// Bounds on a length.
#[derive(Debug, Default, Clone, Copy)]
struct Sizes {
    exact: Option<u64>,
    min: Option<u64>,
    max: Option<u64>,
}

impl Sizes {
    const fn is_any(self) -> bool {
        matches!(self, Self { exact: None, min: None, max: None })
    }

    fn broken(self, n: usize, unit: &str) -> Option<String> {
        let n = n as u64;
        let said = |how: &str, bound: u64| {
            let s = if bound == 1 { "" } else { "s" };
            Some(format!("must have {how} {bound} {unit}{s}, not {n}"))
        };
        match (self.exact, self.min, self.max) {
            (Some(exact), _, _) if n != exact => said("exactly", exact),
            (_, Some(1), _) if n == 0 => Some("must not be empty".to_owned()),
            (_, Some(min), _) if n < min => said("at least", min),
            (_, _, Some(max)) if n > max => said("at most", max),
            _ => None,
        }
    }
}

/// Bounds on a number.
#[derive(Debug)]
struct Range<T> {
    exact: Option<T>,
    /// Bound, and whether the bound itself is allowed.
    low: Option<(T, bool)>,
    high: Option<(T, bool)>,
    among: Vec<T>,
    not_among: Vec<T>,
    ignore_empty: bool,
}

impl<T: PartialOrd + Default> Range<T> {
    fn broken<S: Display>(&self, value: &T, show: impl Fn(&T) -> S) -> Option<String> {
        if self.ignore_empty && *value == T::default() {
            return None;
        }
        let list = |all: &[T]| all.iter().map(|v| show(v).to_string()).collect::<Vec<_>>().join(", ");
        let above = |(bound, itself): &(T, bool)| value > bound || (*itself && value == bound);
        let below = |(bound, itself): &(T, bool)| value < bound || (*itself && value == bound);
        let low_text = |(bound, itself): &(T, bool)| {
            format!("{} {}", if *itself { "at least" } else { "greater than" }, show(bound))
        };
        let high_text = |(bound, itself): &(T, bool)| {
            format!("{} {}", if *itself { "at most" } else { "less than" }, show(bound))
        };
        let bounds = match (&self.low, &self.high) {
            // The bounds the other way round exclude what is between them.
            (Some(low), Some(high)) if low.0 > high.0 => {
                (!above(low) && !below(high)).then(|| format!("{} or {}", high_text(high), low_text(low)))
            }
            (Some(low), Some(high)) => {
                (!above(low) || !below(high)).then(|| format!("{} and {}", low_text(low), high_text(high)))
            }
            (Some(low), None) => (!above(low)).then(|| low_text(low)),
            (None, Some(high)) => (!below(high)).then(|| high_text(high)),
            (None, None) => None,
        };
        if let Some(exact) = self.exact.as_ref().filter(|e| *e != value) {
            return Some(format!("must be {}", show(exact)));
        }
        if let Some(bounds) = bounds {
            return Some(format!("must be {bounds}, not {}", show(value)));
        }
        if !self.among.is_empty() && !self.among.contains(value) {
            return Some(format!("must be one of {}", list(&self.among)));
        }
        self.not_among.contains(value).then(|| format!("must not be {}", show(value)))
    }
}

/// The rules of the twelve number types have the same fields.
macro_rules! range {
    ($rules:expr, $into:expr) => {{
        let (r, into) = ($rules, $into);
        Range {
            exact: r.r#const.map(into),
            low: r.gt.map(|v| (into(v), false)).or_else(|| r.gte.map(|v| (into(v), true))),
            high: r.lt.map(|v| (into(v), false)).or_else(|| r.lte.map(|v| (into(v), true))),
            among: r.r#in.into_iter().map(into).collect(),
            not_among: r.not_in.into_iter().map(into).collect(),
            ignore_empty: r.ignore_empty.unwrap_or_default(),
        }
    }};
}

impl Rules {
    /// The rules in `from`; None when they check nothing.
    pub(crate) fn new(from: FieldRules) -> Option<Self> {
        let message = from.message.unwrap_or_default();
        let mut rules = Self {
            required: message.required.unwrap_or_default(),
            skip: message.skip.unwrap_or_default(),
            check: Check::Nothing,
        };
        if let Some(check) = from.r#type {
            rules.required |= match &check {
                Type::Duration(r) => r.required.unwrap_or_default(),
                Type::Timestamp(r) => r.required.unwrap_or_default(),
                Type::Any(r) => r.required.unwrap_or_default(),
                _ => false,
            };
            rules.check = Check::new(check);
        }
        let nothing = matches!(rules.check, Check::Nothing) && !rules.required && !rules.skip;
        (!nothing).then_some(rules)
    }

    /// Whether all they say is whether the field must be set, or what is not checked.
    pub(crate) const fn is_presence(&self) -> bool {
        matches!(self.check, Check::Nothing)
    }

    /// Whether all they say of a list is how many items it may have.
    pub(crate) fn counts_only(&self) -> bool {
        match &self.check {
            Check::Nothing => true,
            Check::List(check) => !check.unique && check.items.as_ref().is_none_or(Self::is_presence),
            _ => false,
        }
    }

    /// The rules of a map's keys, when they say nothing else of it.
    pub(crate) fn of_keys(&self) -> Option<&Self> {
        let Check::Map(check) = &self.check else { return None };
        check.keys.as_ref().filter(|_| check.values.is_none() && check.sizes.is_any())
    }

    /// Whether a value that is set may be this one.
    pub(crate) fn allows(&self, kind: &Kind, value: &Value) -> bool {
        self.check.broken(kind, value).is_none()
    }

    /// Whether a text that is set may be this one.
    pub(crate) fn allows_text(&self, text: &str) -> bool {
        matches!(&self.check, Check::Text(check) if check.broken(text).is_none())
    }

    /// Whether a duration or a time may have so many nanoseconds.
    pub(crate) fn allows_nanos(&self, nanos: i128) -> bool {
        matches!(&self.check, Check::Time(range) if range.broken(&nanos, |n| *n).is_none())
    }

    /// Whether a list may have so many items.
    pub(crate) fn allows_count(&self, items: usize) -> bool {
        match &self.check {
            Check::List(check) => {
                (check.ignore_empty && items == 0) || check.sizes.broken(items, "item").is_none()
            }
            _ => true,
        }
    }

    /// Checks the field `desc`, which stands at `at` and is `set` or has its default value.
    pub(crate) fn field(
        &self,
        desc: &FieldDescriptor,
        set: bool,
        value: &Value,
        at: &At<'_>,
        report: &mut Report<'_>,
    ) {
        if !set && desc.supports_presence() {
            // A member of a oneof is required only as its oneof is.
            let member = desc.containing_oneof().is_some_and(|o| !o.is_synthetic());
            if self.required && !member {
                report(at, "is required".to_owned());
            }
            return;
        }
        match (&self.check, value) {
            (Check::List(check), Value::List(list)) => check.run(&desc.kind(), list, at, report),
            (Check::Map(check), Value::Map(map)) => {
                let empty = check.ignore_empty && map.is_empty();
                if let Some(broken) = check.sizes.broken(map.len(), "entry").filter(|_| !empty) {
                    report(at, broken);
                }
                for (key, value) in map {
                    check.entry(&desc.kind(), key, value, at, report);
                }
            }
            _ => self.value(&desc.kind(), value, at, report),
        }
    }

    /// Checks one value, which is set.
    fn value(&self, kind: &Kind, value: &Value, at: &At<'_>, report: &mut Report<'_>) {
        let inner;
        let value = match value {
            Value::Message(m) if is_wrapper(m) => {
                inner = m.get_field_by_name("value");
                inner.as_deref().unwrap_or(value)
            }
            _ => value,
        };
        if let Some(broken) = self.check.broken(kind, value) {
            report(at, broken);
        }
    }
}

fn is_wrapper(message: &DynamicMessage) -> bool {
    let desc = message.descriptor();
    let name = desc.full_name();
    name.starts_with("google.protobuf.")
        && name.ends_with("Value")
        && name != "google.protobuf.Value"
        && name != "google.protobuf.ListValue"
}

impl ListCheck {
    fn run(&self, kind: &Kind, list: &[Value], at: &At<'_>, report: &mut Report<'_>) {
        if self.ignore_empty && list.is_empty() {
            return;
        }
        if let Some(broken) = self.sizes.broken(list.len(), "item") {
            report(at, broken);
        }
        if self.unique {
            let mut seen = HashSet::new();
            for (index, item) in list.iter().enumerate() {
                if !seen.insert(format!("{item:?}")) {
                    report(&at.index(index), "occurs twice in the list".to_owned());
                }
            }
        }
        if let Some(rules) = &self.items {
            for (index, item) in list.iter().enumerate() {
                rules.value(kind, item, &at.index(index), report);
            }
        }
    }
}

impl MapCheck {
    fn entry(&self, kind: &Kind, key: &MapKey, value: &Value, at: &At<'_>, report: &mut Report<'_>) {
        let Some(entry) = kind.as_message() else { return };
        let name = key_text(key);
        let here = at.field(&name);
        if let Some(rules) = &self.keys {
            let mut key_report = |at: &At<'_>, broken: String| report(at, format!("the key {broken}"));
            rules.value(&entry.map_entry_key_field().kind(), &key.clone().into(), &here, &mut key_report);
        }
        if let Some(rules) = &self.values {
            rules.value(&entry.map_entry_value_field().kind(), value, &here, report);
        }
    }
}

/// How a map key stands in a path.
pub(crate) fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(v) => v.to_string(),
        MapKey::I32(v) => v.to_string(),
        MapKey::I64(v) => v.to_string(),
        MapKey::U32(v) => v.to_string(),
        MapKey::U64(v) => v.to_string(),
        MapKey::String(v) => v.clone(),
    }
}

impl Check {
    fn new(from: Type) -> Self {
        match from {
            Type::Float(r) => Self::Float(range!(r, f64::from)),
            Type::Double(r) => Self::Float(range!(r, f64::from)),
            Type::Int32(r) => Self::Int(range!(r, i128::from)),
            Type::Int64(r) => Self::Int(range!(r, i128::from)),
            Type::Uint32(r) => Self::Int(range!(r, i128::from)),
            Type::Uint64(r) => Self::Int(range!(r, i128::from)),
            Type::Sint32(r) => Self::Int(range!(r, i128::from)),
            Type::Sint64(r) => Self::Int(range!(r, i128::from)),
            Type::Fixed32(r) => Self::Int(range!(r, i128::from)),
            Type::Fixed64(r) => Self::Int(range!(r, i128::from)),
            Type::Sfixed32(r) => Self::Int(range!(r, i128::from)),
            Type::Sfixed64(r) => Self::Int(range!(r, i128::from)),
            Type::Bool(r) => r.r#const.map_or(Self::Nothing, Self::Bool),
            Type::String(r) => Self::Text(Box::new(TextCheck::new(r))),
            Type::Bytes(r) => Self::Bytes(Box::new(BytesCheck::new(r))),
            Type::Enum(r) => Self::Enum(r),
            Type::Repeated(r) => Self::list(*r),
            Type::Map(r) => Self::map(*r),
            Type::Any(r) if r.r#in.is_empty() && r.not_in.is_empty() => Self::Nothing,
            Type::Any(r) => Self::Any(r),
            Type::Duration(r) => Self::Time(Range {
                exact: r.r#const.map(nanos),
                low: r.gt.map(|v| (nanos(v), false)).or_else(|| r.gte.map(|v| (nanos(v), true))),
                high: r.lt.map(|v| (nanos(v), false)).or_else(|| r.lte.map(|v| (nanos(v), true))),
                among: r.r#in.into_iter().map(nanos).collect(),
                not_among: r.not_in.into_iter().map(nanos).collect(),
                ignore_empty: false,
            }),
            // lt_now, gt_now and within need a clock and occur nowhere in the API.
            Type::Timestamp(r) => Self::Time(Range {
                exact: r.r#const.map(since_epoch),
                low: r.gt.map(|v| (since_epoch(v), false)).or_else(|| r.gte.map(|v| (since_epoch(v), true))),
                high: r.lt.map(|v| (since_epoch(v), false)).or_else(|| r.lte.map(|v| (since_epoch(v), true))),
                among: Vec::new(),
                not_among: Vec::new(),
                ignore_empty: false,
            }),
        }
    }

    fn list(r: RepeatedRules) -> Self {
        Self::List(Box::new(ListCheck {
            sizes: Sizes { exact: None, min: r.min_items, max: r.max_items },
            unique: r.unique.unwrap_or_default(),
            ignore_empty: r.ignore_empty.unwrap_or_default(),
            items: r.items.and_then(|items| Rules::new(*items)),
        }))
    }

    fn map(r: MapRules) -> Self {
        Self::Map(Box::new(MapCheck {
            sizes: Sizes { exact: None, min: r.min_pairs, max: r.max_pairs },
            ignore_empty: r.ignore_empty.unwrap_or_default(),
            keys: r.keys.and_then(|keys| Rules::new(*keys)),
            values: r.values.and_then(|values| Rules::new(*values)),
        }))
    }

    /// What is wrong with one value.
    fn broken(&self, kind: &Kind, value: &Value) -> Option<String> {
        match (self, value) {
            (Self::Int(range), Value::I32(v)) => range.broken(&i128::from(*v), ToString::to_string),
            (Self::Int(range), Value::I64(v)) => range.broken(&i128::from(*v), ToString::to_string),
            (Self::Int(range), Value::U32(v)) => range.broken(&i128::from(*v), ToString::to_string),
            (Self::Int(range), Value::U64(v)) => range.broken(&i128::from(*v), ToString::to_string),
            (Self::Float(range), Value::F32(v)) => range.broken(&f64::from(*v), ToString::to_string),
            (Self::Float(range), Value::F64(v)) => range.broken(v, ToString::to_string),
            (Self::Bool(wanted), Value::Bool(v)) => (v != wanted).then(|| format!("must be {wanted}")),
            (Self::Text(check), Value::String(v)) => check.broken(v),
            (Self::Bytes(check), Value::Bytes(v)) => check.broken(v),
            (Self::Enum(rules), Value::EnumNumber(v)) => broken_enum(rules, kind.as_enum(), *v),
            (Self::Any(rules), Value::Message(any)) => broken_any(rules, any),
            (Self::Time(range), Value::Message(time)) => {
                let show = |n: &i128| duration::show_nanos(*n);
                range.broken(&duration::nanos_of(time)?, show)
            }
            _ => None,
        }
    }
}

fn broken_enum(rules: &EnumRules, desc: Option<&EnumDescriptor>, value: i32) -> Option<String> {
    let name =
        |n: i32| desc.and_then(|d| d.get_value(n)).map_or_else(|| n.to_string(), |v| v.name().to_owned());
    if let Some(wanted) = rules.r#const.filter(|c| *c != value) {
        return Some(format!("must be {}", name(wanted)));
    }
    let undefined = desc.is_some_and(|d| d.get_value(value).is_none());
    if rules.defined_only.unwrap_or_default() && undefined {
        return Some(format!("{value} is none of its values"));
    }
    if !rules.r#in.is_empty() && !rules.r#in.contains(&value) {
        let all: Vec<_> = rules.r#in.iter().map(|n| name(*n)).collect();
        return Some(format!("must be one of {}", all.join(", ")));
    }
    rules.not_in.contains(&value).then(|| format!("must not be {}", name(value)))
}

fn broken_any(rules: &AnyRules, any: &DynamicMessage) -> Option<String> {
    let url = any.get_field_by_name("type_url")?;
    let url = url.as_str()?;
    if !rules.r#in.is_empty() && !rules.r#in.iter().any(|t| t == url) {
        return Some(format!("must hold one of {}", rules.r#in.join(", ")));
    }
    rules.not_in.iter().any(|t| t == url).then(|| format!("must not hold {url}"))
}

fn nanos(d: Duration) -> i128 {
    duration::nanos(d.seconds, d.nanos)
}

fn since_epoch(t: Timestamp) -> i128 {
    duration::nanos(t.seconds, t.nanos)
}

#[cfg(test)]
mod tests;
