//! View models of the demo and of dotNetify's load tester (contract 7.1), and what they are made of.
//!
//! A view model is a plain state machine: it is told of creation, of property updates, of its timers and of members who left, and
//! answers with effects gathered in a `Turn`. The hub carries them out; no view model knows of connections or locks.
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

mod broadcast;
mod burst;
mod chat;
mod echo;
mod hello;
mod probe;

/// The longest a view model may keep its connection busy, so that a test's typing error cannot block a lane for good.
pub const WORK_MAX: Duration = Duration::from_secs(120);

pub trait ViewModel: Send {
    /// Called once, after the properties in vmArg were set.
    fn created(&mut self, _turn: &mut Turn) -> Result<(), Exception> {
        Ok(())
    }

    /// The whole state, in the order it is shown.
    fn state(&self) -> Object;

    /// Sets a property or runs a command. Names that are not known are ignored, as dotNetify does.
    fn set(&mut self, property: &str, value: &Value, turn: &mut Turn) -> Result<(), Exception>;

    /// A timer that was asked for with `Turn::after`.
    fn timer(&mut self, _tag: &str, _turn: &mut Turn) {}

    /// A member of a shared view model disposed it or is gone; others remain.
    fn left(&mut self, _member: &str, _turn: &mut Turn) {}
}

/// Whom a type's instances belong to.
pub enum Sharing {
    /// Each client has its own.
    Own,
    /// A multicast view model: one for all with the same group, or for all without one.
    Shared { group: Option<String> },
}

/// A type as the factory knows it.
pub struct Kind {
    pub name: &'static str,
    pub sharing: Sharing,
    pub create: fn() -> Box<dyn ViewModel>,
}

/// Finds a registered type; `argument` decides on the group.
pub fn kind(type_name: &str, argument: &Object) -> Option<Kind> {
    let own = |name, create| Some(Kind { name, sharing: Sharing::Own, create });
    let shared = |name, group, create| Some(Kind { name, sharing: Sharing::Shared { group }, create });
    match type_name {
        "HelloWorldVM" => own("HelloWorldVM", || Box::<hello::HelloWorld>::default()),
        "EchoVM" => own("EchoVM", || Box::<echo::Echo>::default()),
        "SharedEchoVM" => shared("SharedEchoVM", None, || Box::<echo::SharedEcho>::default()),
        "BroadcastVM" => shared("BroadcastVM", Some("BroadcastVM".into()), || Box::<broadcast::Broadcast>::default()),
        "BurstVM" => own("BurstVM", || Box::<burst::Burst>::default()),
        "ChatRoomVM" => {
            let room = argument.of("ChatRoom").map(text).filter(|room| !room.is_empty());
            shared("ChatRoomVM", room, || Box::<chat::ChatRoom>::default())
        }
        "FaultyVM" => own("FaultyVM", || Box::<probe::Faulty>::default()),
        "SlowVM" => own("SlowVM", || Box::<probe::Slow>::default()),
        "UserAlertVM" => shared("UserAlertVM", None, || Box::<probe::UserAlert>::default()),
        _ => None,
    }
}

/// How long creating a view model takes: the asynchronous `OnCreatedAsync` of the real ones, which holds up its lane (contract 4.2).
pub fn creation_delay(type_name: &str, argument: &Object) -> Duration {
    if type_name == "SlowVM" { milliseconds(argument.of("Delay")) } else { Duration::ZERO }
}

/// How long a command in an update takes.
pub fn update_delay(type_name: &str, data: &Object) -> Duration {
    if type_name == "SlowVM" { milliseconds(data.of("Work")) } else { Duration::ZERO }
}

fn milliseconds(value: Option<&Value>) -> Duration {
    let millis = value.and_then(integer).unwrap_or(0);
    Duration::from_millis(u64::try_from(millis).unwrap_or(0)).min(WORK_MAX)
}

/// `Master.Name$instance` -> `Name`: the type is in the last part, before the instance id.
pub fn type_name(vm_id: &str) -> &str {
    let part = vm_id.rsplit_once('.').map_or(vm_id, |(_, part)| part);
    part.split_once('$').map_or(part, |(name, _)| name)
}

/// A .NET exception as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    pub kind: String,
    pub message: String,
}

impl Exception {
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Exception { kind: kind.to_owned(), message: message.into() }
    }

    /// The response's data (contract 1.4).
    pub fn data(&self) -> String {
        let mut data = Object::default();
        data.push("ExceptionType", self.kind.as_str());
        data.push("Message", self.message.as_str());
        data.json()
    }
}

/// What a view model wants done.
pub enum Effect {
    /// To everybody who has it.
    Push(Object),
    /// To these connections (`SendToManyAsync`, even for one).
    SendTo(Vec<String>, Object),
    SendToUsers(Vec<String>, Object),
    After(Duration, &'static str, String),
}

/// One call into a view model: who caused it and when, and what came of it.
pub struct Turn {
    /// The connection id of the client whose message this is; empty for timers.
    pub caller: String,
    pub now: SystemTime,
    pub effects: Vec<Effect>,
    /// Properties changed since the last push.
    pub changed: Object,
}

impl Turn {
    pub fn new(caller: &str) -> Self {
        Turn { caller: caller.to_owned(), now: SystemTime::now(), effects: Vec::new(), changed: Object::default() }
    }

    /// Notes a changed property; a later change of the same one takes its place.
    pub fn change(&mut self, property: &str, value: impl Into<Value>) {
        self.changed.0.retain(|(name, _)| name != property);
        self.changed.push(property, value);
    }

    /// Sends what changed so far to all who have the view model.
    pub fn push_updates(&mut self) {
        if !self.changed.0.is_empty() {
            self.effects.push(Effect::Push(std::mem::take(&mut self.changed)));
        }
    }

    pub fn after(&mut self, delay: Duration, tag: &'static str, detail: &str) {
        self.effects.push(Effect::After(delay, tag, detail.to_owned()));
    }
}

/// A JSON object with its members as written: order matters to Update_VM, and a name may come twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Members<V>(pub Vec<(String, V)>);

pub type Object = Members<Value>;

impl<V> Default for Members<V> {
    fn default() -> Self {
        Members(Vec::new())
    }
}

impl Object {
    pub fn push(&mut self, name: &str, value: impl Into<Value>) {
        self.0.push((name.to_owned(), value.into()));
    }

    pub fn of(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Its JSON text.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("names are strings")
    }

    /// A nested value as an object; its own members come in serde's order, which nobody depends on.
    pub fn from_value(value: &Value) -> Option<Object> {
        let members = value.as_object()?;
        Some(Members(members.iter().map(|(name, value)| (name.clone(), value.clone())).collect()))
    }
}

impl<V: Serialize> Serialize for Members<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Read<V> {
            type Value = Members<V>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = access.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read(PhantomData))
    }
}

/// A value as `ToString()` shows it: properties of type string take anything.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A number, or a string holding one: the load tester sends its intervals as strings.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|float| float as i64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A property that could not be converted: dotNetify lets the exception of the converter through.
fn interval(property: &str, value: &Value) -> Result<Duration, Exception> {
    match integer(value) {
        Some(millis @ 0..) => Ok(Duration::from_millis(millis as u64)),
        _ => Err(Exception::new(
            "FormatException",
            format!("{property} '{}' is not a number of milliseconds.", text(value)),
        )),
    }
}

/// Two decimals, as `Math.Round(x, 2)`.
fn round(value: f64) -> Value {
    serde_json::Number::from_f64((value * 100.0).round() / 100.0).map_or(Value::Null, Value::Number)
}

/// Whether the client already has what a property became: then it is not sent back to it.
pub fn same(sent: &Value, is: &Value) -> bool {
    text(sent) == text(is)
}
