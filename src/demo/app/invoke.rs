//! From a bound hub call to a command: the conversions of `Invoke` (contract 2.2, 2.5) and of the header middleware (1.3).
use serde_json::Value;

use super::hub::{Command, Failed};
use super::protocol::{Argument, DEPTH_MAX, depth};
use super::vm::Object;

/// A forwarded method call. `None`: no such method, so it only passes the middleware pipeline, without effect and without touching
/// the handler: no binding is made.
pub fn command(method: Option<String>, arguments: Option<Vec<Argument>>) -> Result<Option<Command>, Failed> {
    // Reflection on a null name, or counting a null array, throws.
    let (Some(method), Some(arguments)) = (method, arguments) else { return Err(Failed) };
    // The four names are mapped to methods, which reflection also finds under their own names, case-sensitively.
    let command = match (method.as_str(), arguments.as_slice()) {
        ("Request_VM" | "RequestVMAsync", [vm_id, vm_arg]) => {
            Command::Request { vm_id: string(vm_id)?, argument: view_model_argument(vm_arg)? }
        }
        ("Update_VM" | "UpdateVMAsync", [vm_id, vm_data]) => {
            Command::Update { vm_id: string(vm_id)?, data: dictionary(vm_data)? }
        }
        ("Dispose_VM" | "DisposeVMAsyc", [vm_id]) => Command::Dispose { vm_id: string(vm_id)? },
        ("OnDisconnectedAsync", [Argument::Null]) => Command::Disconnected,
        // A response of some server's own view model: through the pipeline, and nothing else (contract 5.3).
        ("Response_VM", [_, _]) | ("OnConnectedAsync", []) => return Ok(None),
        ("Request_VM" | "RequestVMAsync" | "Update_VM" | "UpdateVMAsync" | "Dispose_VM" | "DisposeVMAsyc", _)
        | ("OnDisconnectedAsync" | "Response_VM" | "OnConnectedAsync", _) => return Err(Failed),
        _ => return Ok(None),
    };
    Ok(Some(command))
}

/// vmArg, forwarded or direct, as the view model gets it: `$vmArg` if the header middleware finds one, else the object without
/// `$headers`. Values that are no object reach no property.
pub fn view_model_argument(argument: &Argument) -> Result<Object, Failed> {
    Ok(unwrap_argument(value(argument)?))
}

/// The same for a direct call, where SignalR has parsed the value already: a string is just a string.
pub fn direct_argument(argument: &Argument) -> Object {
    match argument {
        Argument::Json(json) => serde_json::from_str(json).map_or_else(|_| Object::default(), unwrap_argument),
        Argument::Null | Argument::Text(_) | Argument::Dictionary(_) => Object::default(),
    }
}

fn unwrap_argument(value: Parsed) -> Object {
    let Parsed::Object(mut object) = value else { return Object::default() };
    if let Some(inner) = object.of("$vmArg") {
        return Object::from_value(inner).unwrap_or_default();
    }
    object.0.retain(|(name, _)| name != "$headers" && name != "$vmArg");
    object
}

/// A string parameter takes a string as it is and anything else as `JsonElement.ToString()`. Null throws in the hub method.
fn string(argument: &Argument) -> Result<String, Failed> {
    match argument {
        Argument::Text(text) => Ok(text.clone()),
        Argument::Json(json) => Ok(match json.as_str() {
            "true" => "True".into(),
            "false" => "False".into(),
            other => other.into(),
        }),
        Argument::Dictionary(_) => Ok(argument.text().to_owned()),
        Argument::Null => Err(Failed),
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Parsed {
    Object(Object),
    Other(Value),
}

/// An `object` parameter: the text is parsed as JSON, whatever it holds.
fn value(argument: &Argument) -> Result<Parsed, Failed> {
    match argument {
        Argument::Null => Ok(Parsed::Other(Value::Null)),
        Argument::Text(text) | Argument::Json(text) => {
            if depth(text) > DEPTH_MAX {
                return Err(Failed);
            }
            serde_json::from_str(text).map_err(|_| Failed)
        }
        // The name of its type is no JSON.
        Argument::Dictionary(_) => Err(Failed),
    }
}

/// A `Dictionary<string, object>` parameter: an object, or null.
fn dictionary(argument: &Argument) -> Result<Option<Object>, Failed> {
    match value(argument)? {
        Parsed::Object(object) => Ok(Some(object)),
        Parsed::Other(Value::Null) => Ok(None),
        Parsed::Other(_) => Err(Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(method: &str, arguments: &[Argument]) -> Result<Option<Command>, Failed> {
        command(Some(method.to_owned()), Some(arguments.to_vec()))
    }

    fn text(text: &str) -> Argument {
        Argument::Text(text.to_owned())
    }

    fn requested(argument: Argument) -> Option<String> {
        match run("Request_VM", &[text("VM"), argument]) {
            Ok(Some(Command::Request { argument, .. })) => Some(argument.json()),
            Ok(other) => panic!("{other:?}"),
            Err(Failed) => None,
        }
    }

    /// The table of contract 2.2.
    #[test]
    fn arguments_are_json_text() {
        assert_eq!(requested(text(r#"{"$vmArg":{"b":1,"a":2},"$headers":{}}"#)).as_deref(), Some(r#"{"a":2,"b":1}"#));
        assert_eq!(requested(text(r#"{"b":1,"a":2}"#)).as_deref(), Some(r#"{"b":1,"a":2}"#));
        assert_eq!(requested(text(r#"{"$vmArg":null,"$headers":null}"#)).as_deref(), Some("{}"));
        for taken in ["5.10", "1e3", "null", r#""hello""#, "true", "[1]"] {
            assert_eq!(requested(text(taken)).as_deref(), Some("{}"), "{taken}");
        }
        assert_eq!(requested(Argument::Null).as_deref(), Some("{}"));
        for refused in ["hello", "", "True", "System.Collections.Generic.Dictionary`2"] {
            assert_eq!(requested(text(refused)), None, "{refused}");
        }
        assert_eq!(
            requested(Argument::Json(r#"{"a":1}"#.into())).as_deref(),
            Some(r#"{"a":1}"#),
            "inline objects work on JSON lanes"
        );
        assert_eq!(requested(text(&"[".repeat(65))), None);
    }

    #[test]
    fn updates_keep_the_order_of_their_keys() {
        let Ok(Some(Command::Update { data: Some(data), .. })) =
            run("Update_VM", &[text("VM"), text(r#"{"b":1,"a":2,"b":3}"#)])
        else {
            panic!("not an update")
        };
        assert_eq!(data.json(), r#"{"b":1,"a":2,"b":3}"#);
        assert!(matches!(run("Update_VM", &[text("VM"), text("null")]), Ok(Some(Command::Update { data: None, .. }))));
        assert!(run("Update_VM", &[text("VM"), text("[1]")]).is_err());
    }

    #[test]
    fn argument_counts_and_unknown_names() {
        assert!(matches!(run("OnDisconnectedAsync", &[Argument::Null]), Ok(Some(Command::Disconnected))));
        assert!(run("OnDisconnectedAsync", &[]).is_err());
        assert!(run("Dispose_VM", &[]).is_err());
        assert!(run("Request_VM", &[text("VM")]).is_err());
        assert!(matches!(run("ReceiveTelemetry", &[Argument::Json("{}".into())]), Ok(None)));
        assert!(matches!(run("request_vm", &[]), Ok(None)), "reflection is case-sensitive");
        assert!(command(None, Some(Vec::new())).is_err());
        assert!(command(Some("Dispose_VM".into()), None).is_err());
    }
}
