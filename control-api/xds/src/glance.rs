//! A look at the bytes of a resource: for nearly every one without a mistake it tells that there is none, and makes nothing of them.
//!
//! It has no opinion about mistakes. What it does not know well enough is left to [`crate::check`], which decides, and says what is wrong.

mod part;

use std::sync::OnceLock;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, Value};

use self::part::{Part, nanos, wrapped};
use crate::any;
use crate::check::{MAX_ANYS, text_of};
use crate::diag::At;
use crate::pb::google::protobuf::Any;
use crate::pgv::Rules;
use crate::schema::{FieldPlan, Plan, Schema};

/// Messages inside of one another, outside of Anys. Decoders stop at a hundred.
const MAX_DEPTH: u8 = 30;
/// The first field of every wrapper and of a map's entry; of an Any the type URL.
const FIRST: u32 = 1;
/// Value of an entry, and of an Any.
const SECOND: u32 = 2;

/// What stands in a field.
#[derive(Debug)]
pub(crate) enum Inside {
    Scalar(Kind),
    /// A supported message, by its place among the plans.
    Message(usize),
    Any,
    /// A wrapper, by the kind of its value.
    Wrapper(Kind),
    /// A duration or a time.
    Time,
    /// A message that nothing is known of here.
    Other,
}

/// How often a field may stand in its message.
#[derive(Debug, PartialEq, Eq)]
enum Times {
    Once,
    List,
    /// Entries with keys of this kind.
    Map(Kind),
}

/// What a field looks like in bytes.
#[derive(Debug)]
pub(crate) struct Look {
    inside: Inside,
    times: Times,
    /// The other members of its oneof, as bits.
    rivals: u128,
}

/// What a message looks like in bytes. Bits stand for its fields in their order.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    numbers: Vec<u32>,
    fields: Vec<Look>,
    /// Members of the oneofs of which one must be set.
    one_of: Vec<u128>,
    /// Lists with rules.
    lists: u128,
    /// Fields whose rules do not allow that they are not set. Known when first needed: patterns are slow to compile.
    needed: OnceLock<u128>,
}

impl Look {
    fn new(field: &FieldDescriptor, place: &impl Fn(&str) -> Option<usize>, numbers: &[u32]) -> Self {
        let (times, kind) = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                (Times::Map(entry.map_entry_key_field().kind()), entry.map_entry_value_field().kind())
            }
            kind if field.is_list() => (Times::List, kind),
            kind => (Times::Once, kind),
        };
        let oneof = field.containing_oneof();
        let members = oneof.iter().flat_map(|oneof| oneof.fields().map(|member| member.number()));
        let rivals = bits(members.filter(|number| *number != field.number()), numbers);
        Self { inside: Inside::new(kind, place), times, rivals }
    }
}

impl Inside {
    fn new(kind: Kind, place: &impl Fn(&str) -> Option<usize>) -> Self {
        let Kind::Message(desc) = kind else { return Self::Scalar(kind) };
        if desc.full_name() == "google.protobuf.Any" {
            return Self::Any;
        }
        if let Some(place) = place(desc.full_name()) {
            return Self::Message(place);
        }
        match desc.full_name() {
            "google.protobuf.Duration" | "google.protobuf.Timestamp" => Self::Time,
            name if name.starts_with("google.protobuf.") && name.ends_with("Value") => {
                desc.get_field(FIRST).map_or(Self::Other, |value| Self::Wrapper(value.kind()))
            }
            _ => Self::Other,
        }
    }
}

impl Looks {
    /// What `desc` looks like, whose fields have these plans. `place` tells the places of messages among the plans.
    pub(crate) fn new(
        desc: &MessageDescriptor,
        fields: &[FieldPlan],
        required_oneofs: &[(String, Vec<FieldDescriptor>)],
        place: &impl Fn(&str) -> Option<usize>,
    ) -> Self {
        if desc.fields().len() > 128 {
            // None has so many; it would be left to the other check.
            return Self::default();
        }
        let numbers: Vec<_> = desc.fields().map(|field| field.number()).collect();
        let one_of = required_oneofs
            .iter()
            .map(|(_, members)| bits(members.iter().map(FieldDescriptor::number), &numbers));
        let lists = fields.iter().filter(|field| field.desc.is_list() && field.rules.is_some());
        Self {
            fields: desc.fields().map(|field| Look::new(&field, place, &numbers)).collect(),
            one_of: one_of.collect(),
            lists: bits(lists.map(|field| field.desc.number()), &numbers),
            needed: OnceLock::new(),
            numbers,
        }
    }

    fn needed(&self, fields: &[FieldPlan]) -> u128 {
        *self.needed.get_or_init(|| {
            let needed = fields.iter().filter(|field| !keeps(field, false, &field.desc.default_value()));
            bits(needed.map(|field| field.desc.number()), &self.numbers)
        })
    }
}

fn bits(wanted: impl Iterator<Item = u32>, numbers: &[u32]) -> u128 {
    wanted
        .filter_map(|number| numbers.binary_search(&number).ok())
        .fold(0, |bits, place| bits | (1_u128 << place))
}

/// Whether a field keeps its rules.
fn keeps(field: &FieldPlan, set: bool, value: &Value) -> bool {
    let mut right = true;
    if let Some(rules) = &field.rules {
        rules.field(&field.desc, set, value, &At::root(), &mut |_, _| right = false);
    }
    right
}

/// Where a look is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Whether the rules hold here.
    rules: bool,
    depth: u8,
    anys: usize,
}

impl Place {
    fn inside(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

/// Messages that were found right, the last one of each kind. Most of what the resources of one response have in them is byte for
/// byte what the one before had: that needs no second look.
#[derive(Debug, Default)]
pub struct Seen<'b>(Vec<Option<Right<'b>>>);

/// A message that keeps the rules at this place.
#[derive(Debug, Clone, Copy)]
struct Right<'b> {
    bytes: &'b [u8],
    depth: u8,
    anys: usize,
}

impl<'b> Seen<'b> {
    /// Whether these bytes were found right where they may have no more around them than here.
    fn has(&self, plan: usize, bytes: &[u8], place: Place) -> bool {
        let right = self.0.get(plan).copied().flatten();
        right.is_some_and(|right| {
            right.bytes == bytes && place.depth <= right.depth && place.anys <= right.anys
        })
    }

    fn put(&mut self, plan: usize, bytes: &'b [u8], place: Place) {
        if self.0.len() <= plan {
            self.0.resize(plan + 1, None);
        }
        self.0[plan] = Some(Right { bytes, depth: place.depth, anys: place.anys });
    }
}

impl Schema {
    /// Whether the message in `any` has no mistake. False says nothing: [`Self::check_any`] knows. `seen` are messages of resources before it.
    #[must_use]
    pub fn is_plainly_right<'b>(&self, any: &'b Any, seen: &mut Seen<'b>) -> bool {
        let place = Place { rules: true, depth: 0, anys: 0 };
        Glance { schema: self, seen }.any(&any.type_url, &any.value, place).is_some()
    }
}

/// A look at one resource. All of it is None where a mistake cannot be ruled out, there or below.
struct Glance<'s, 'b> {
    schema: &'s Schema,
    seen: &'s mut Seen<'b>,
}

impl<'b> Glance<'_, 'b> {
    fn any(&mut self, type_url: &str, value: &'b [u8], place: Place) -> Option<()> {
        let plan = self.schema.place(any::type_name(type_url)?)?;
        if place.anys == MAX_ANYS {
            return None;
        }
        self.planned(plan, value, Place { depth: 0, anys: place.anys + 1, ..place })
    }

    /// A message of a plan, unless it is one that was right before.
    fn planned(&mut self, plan: usize, bytes: &'b [u8], place: Place) -> Option<()> {
        if !place.rules {
            return self.message(self.schema.plan_at(plan)?, bytes, place);
        }
        if !self.seen.has(plan, bytes, place) {
            self.message(self.schema.plan_at(plan)?, bytes, place)?;
            self.seen.put(plan, bytes, place);
        }
        Some(())
    }

    fn message(&mut self, plan: &Plan, bytes: &'b [u8], place: Place) -> Option<()> {
        if place.depth > MAX_DEPTH {
            return None;
        }
        let (looks, mut seen, mut rest) = (&plan.looks, 0_u128, bytes);
        while !rest.is_empty() {
            let part = Part::read(&mut rest)?;
            let index = looks.numbers.binary_search(&part.number).ok()?;
            let (field, look, bit) = (&plan.fields[index], &looks.fields[index], 1_u128 << index);
            if seen & (look.rivals | if look.times == Times::Once { bit } else { 0 }) != 0 {
                return None;
            }
            seen |= bit;
            self.field(field, look, &part, place)?;
        }
        if place.rules {
            let lacks = looks.needed(&plan.fields) & !seen != 0;
            if lacks || looks.one_of.iter().any(|members| seen & members == 0) {
                return None;
            }
            let lists =
                looks.numbers.iter().enumerate().filter(|(i, _)| seen & looks.lists & (1_u128 << i) != 0);
            for (index, _) in lists {
                list(&plan.fields[index], &looks.fields[index].inside, bytes)?;
            }
        }
        Some(())
    }

    /// A field, or one item of a list: as a whole a list is looked at later.
    fn field(&mut self, field: &FieldPlan, look: &Look, part: &Part<'b>, place: Place) -> Option<()> {
        let rules = field.rules.as_ref().filter(|_| place.rules);
        let place = Place { rules: place.rules && !rules.is_some_and(|rules| rules.skip), ..place };
        let rules = rules.filter(|rules| look.times != Times::List && !rules.is_presence());
        match (&look.times, &look.inside) {
            (Times::Map(_), _) if !field.values.is_empty() => None,
            (Times::Map(kind), inside) => {
                let keys = match rules {
                    Some(rules) => Some(rules.of_keys()?),
                    None => None,
                };
                self.entry((kind, keys), inside, part.content()?, place.inside())
            }
            (_, Inside::Scalar(kind)) if rules.is_none() && field.values.is_empty() => {
                part.is(kind).then_some(())
            }
            (_, Inside::Scalar(Kind::String)) if field.values.is_empty() => {
                let text = std::str::from_utf8(part.content()?).ok()?;
                rules.is_none_or(|rules| rules.allows_text(text)).then_some(())
            }
            (_, Inside::Scalar(kind)) => {
                let value = part.value(kind)?;
                let supported = field.values.is_empty() || field.values.contains(&text_of(kind, &value));
                (supported && (rules.is_none() || keeps(field, true, &value))).then_some(())
            }
            (_, Inside::Wrapper(kind)) if field.values.is_empty() => {
                let value = wrapped(kind, part.content()?)?;
                (rules.is_none() || keeps(field, true, &value)).then_some(())
            }
            (_, Inside::Time) if field.values.is_empty() => {
                let nanos = nanos(part.content()?)?;
                rules.is_none_or(|rules| rules.allows_nanos(nanos)).then_some(())
            }
            (_, inside) if rules.is_none() && field.values.is_empty() => {
                self.inside(inside, part.content()?, place)
            }
            _ => None,
        }
    }

    /// A message without rules of its own.
    fn inside(&mut self, inside: &Inside, bytes: &'b [u8], place: Place) -> Option<()> {
        match inside {
            Inside::Scalar(_) => None,
            Inside::Message(plan) => self.planned(*plan, bytes, place.inside()),
            Inside::Any => {
                let (mut url, mut value, mut rest) = (None, None, bytes);
                while !rest.is_empty() {
                    let part = Part::read(&mut rest)?;
                    let slot = match part.number {
                        FIRST => &mut url,
                        SECOND => &mut value,
                        _ => return None,
                    };
                    if slot.replace(part.content()?).is_some() {
                        return None;
                    }
                }
                self.any(std::str::from_utf8(url?).ok()?, value.unwrap_or_default(), place)
            }
            Inside::Wrapper(kind) => wrapped(kind, bytes).map(drop),
            Inside::Time => nanos(bytes).map(drop),
            Inside::Other => None,
        }
    }

    /// An entry of a map, whose key is of this kind and keeps these rules.
    fn entry(
        &mut self,
        (key, rules): (&Kind, Option<&Rules>),
        inside: &Inside,
        bytes: &'b [u8],
        place: Place,
    ) -> Option<()> {
        let (mut keys, mut values, mut rest) = (0, 0, bytes);
        while !rest.is_empty() {
            let part = Part::read(&mut rest)?;
            match (part.number, inside) {
                (FIRST, _) => {
                    let value = part.value(key)?;
                    rules.is_none_or(|rules| rules.allows(key, &value)).then_some(())?;
                    keys += 1;
                }
                (SECOND, Inside::Scalar(kind)) if part.is(kind) => values += 1,
                (SECOND, inside) => {
                    self.inside(inside, part.content()?, place)?;
                    values += 1;
                }
                _ => return None,
            }
        }
        // An encoder may leave out what is empty; few do.
        ((keys, values) == (1, 1)).then_some(())
    }
}

/// A list as a whole.
fn list(field: &FieldPlan, inside: &Inside, bytes: &[u8]) -> Option<()> {
    let rules = field.rules.as_ref()?;
    let (mut count, mut values, mut rest) = (0, Vec::new(), bytes);
    let counts = rules.counts_only();
    while !rest.is_empty() {
        let part = Part::read(&mut rest)?;
        if part.number == field.desc.number() {
            count += 1;
            if !counts {
                let Inside::Scalar(kind) = inside else { return None };
                values.push(part.value(kind)?);
            }
        }
    }
    let right = if counts { rules.allows_count(count) } else { keeps(field, true, &Value::List(values)) };
    right.then_some(())
}

#[cfg(test)]
#[path = "glance/tests.rs"]
mod tests;
