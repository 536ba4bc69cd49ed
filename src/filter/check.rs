//! What an expression may say: names, functions, their arguments and types. What passes here cannot fail for its types, except where a
//! value's type is known only with the message (`data`, `claims`).
//!
//! The language is a part of CEL's. Left out is what a filter has no use for (bytes, unsigned integers, time, maps, messages) and what
//! could make evaluation expensive: `map`, which multiplies what it reads, loops within loops, and patterns that come with the message.
//! What calls are known stands in `FUNCTIONS` and in `Checker::loop_over`.
use super::FilterFault;
use super::evaluate::Loops;
use super::fast::Subject;
use super::parse::Parsed;
use super::{HeaderNames, Needs, pattern};
use crate::proto::dotnetify::request::Call;
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};
use core::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Bool,
    Int,
    Double,
    String,
    Null,
    /// Known only with the message.
    Dyn,
    List(Box<Type>),
    /// From string.
    Map(Box<Type>),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Double => f.write_str("double"),
            Type::String => f.write_str("string"),
            Type::Null => f.write_str("null"),
            Type::Dyn => f.write_str("dyn"),
            Type::List(of) => write!(f, "list({of})"),
            Type::Map(of) => write!(f, "map(string, {of})"),
        }
    }
}

impl Type {
    fn is(&self, wanted: &Type) -> bool {
        *self == Type::Dyn || self == wanted
    }

    fn is_number(&self) -> bool {
        matches!(self, Type::Int | Type::Double | Type::Dyn)
    }

    /// Can values of both types be equal?
    fn meets(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn) => true,
            (Type::List(of), Type::List(other)) | (Type::Map(of), Type::Map(other)) => of.meets(other),
            _ => self == other || self.is_number() && other.is_number(),
        }
    }

    fn or(self, other: Type) -> Type {
        if self == other { self } else { Type::Dyn }
    }
}

const VARIABLES: [(&str, Type); 8] = [
    ("vm_id", Type::String),
    ("call_type", Type::String),
    ("connection_id", Type::String),
    ("user", Type::String),
    ("path", Type::String),
    // Maps of string and of dyn; a constant cannot hold what they box.
    ("headers", Type::Dyn),
    ("claims", Type::Dyn),
    ("data", Type::Dyn),
];

/// Functions with a fixed number of arguments: how a call looks, for messages and suggestions.
const FUNCTIONS: [(&str, &str); 9] = [
    ("startsWith", "text.startsWith(\"...\")"),
    ("endsWith", "text.endsWith(\"...\")"),
    ("contains", "text.contains(\"...\")"),
    ("matches", "text.matches(\"pattern\")"),
    ("size", "size(value)"),
    ("has", "has(data.Name)"),
    ("int", "int(value)"),
    ("double", "double(value)"),
    ("string", "string(value)"),
];

/// Calls that the parser turns into loops.
const LOOPS: [&str; 5] = ["all", "exists", "exists_one", "existsOne", "filter"];

/// Names that C# has for the same things.
const FOREIGN: [(&str, &str); 12] = [
    ("VMId", "vm_id"),
    ("CallType", "call_type"),
    ("ConnectionId", "connection_id"),
    ("Principal", "user"),
    ("User", "user"),
    ("HttpRequestHeaders", "headers"),
    ("Data", "data"),
    ("Any", "exists"),
    ("All", "all"),
    ("Count", "size"),
    ("Length", "size"),
    ("IsMatch", "matches"),
];

/// What the walk found besides types.
pub struct Checked {
    pub needs: Needs,
    pub headers: HeaderNames,
    pub loops: Loops,
    /// Of `matches`, in the order of the functions that its calls were renamed to.
    pub patterns: Vec<regex::Regex>,
}

/// Checks an expression. Calls of `matches` are renamed after their patterns.
pub fn check(parsed: &mut Parsed<'_>) -> Result<Checked, FilterFault> {
    let mut expression = core::mem::take(&mut parsed.expression);
    let checked = Checked {
        needs: Needs::default(),
        headers: HeaderNames::default(),
        loops: Loops::default(),
        patterns: Vec::new(),
    };
    let mut checker = Checker { parsed, checked, element: None, unnamed_headers: 0 };
    let result = checker.type_of(&mut expression)?;
    if !result.is(&Type::Bool) {
        let remedy = match result {
            Type::String => "compare it: `== \"...\"`",
            _ => "compare it",
        };
        return Err(checker.fault(
            &expression,
            format!("a filter says yes or no, and this is of type {result}"),
            remedy,
        ));
    }
    let mut checked = checker.checked;
    if checker.unnamed_headers > 0 {
        checked.headers = HeaderNames::All;
    }
    parsed.expression = expression;
    Ok(checked)
}

struct Checker<'p, 'a> {
    parsed: &'p Parsed<'a>,
    checked: Checked,
    /// Of the loop around: its name, and type.
    element: Option<(String, Type)>,
    /// Places where `headers` stands without the name of one of them.
    unnamed_headers: usize,
}

type Typed = Result<Type, FilterFault>;

impl Checker<'_, '_> {
    fn type_of(&mut self, node: &mut IdedExpr) -> Typed {
        if self.element.is_some() {
            self.checked.loops.nodes += 1;
            self.checked.loops.readers += usize::from(reads(node));
        }
        let id = node.id;
        match &mut node.expr {
            Expr::Literal(literal) => self.literal(id, literal),
            Expr::Ident(name) => self.variable(id, name),
            Expr::Select(select) => self.member(id, select),
            Expr::List(list) => {
                let mut of = None;
                for element in &mut list.elements {
                    let next = self.type_of(element)?;
                    of = Some(of.map_or(next.clone(), |of: Type| of.or(next)));
                }
                Ok(Type::List(Box::new(of.unwrap_or(Type::Dyn))))
            }
            Expr::Call(call) => self.call(id, call),
            Expr::Comprehension(comprehension) => self.loop_over(id, comprehension),
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                Err(self.fault_at(id, "this has no use in a filter", "compare texts, numbers and lists"))
            }
        }
    }

    fn literal(&self, id: u64, literal: &LiteralValue) -> Typed {
        Ok(match literal {
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::String(_) => Type::String,
            LiteralValue::Null => Type::Null,
            LiteralValue::UInt(_) => {
                return Err(self.fault_at(id, "unsigned integers are not known to filters", "write it without `u`"));
            }
            LiteralValue::Bytes(_) => {
                return Err(self.fault_at(id, "bytes are not known to filters", "write a text, without `b`"));
            }
        })
    }

    fn variable(&mut self, id: u64, name: &str) -> Typed {
        if let Some((_, of)) = self.element.as_ref().filter(|(element, _)| element == name) {
            return Ok(of.clone());
        }
        let needs = &mut self.checked.needs;
        match name {
            "connection_id" => needs.connection_id = true,
            "user" => needs.user = true,
            "path" => needs.path = true,
            "headers" => {
                needs.headers = true;
                // Until its name is found beside it.
                self.unnamed_headers += 1;
                return Ok(Type::Map(Box::new(Type::String)));
            }
            "claims" => {
                needs.claims = true;
                return Ok(Type::Map(Box::new(Type::Dyn)));
            }
            "data" => needs.data = true,
            _ => {}
        }
        if let Some((_, of)) = VARIABLES.iter().find(|(known, _)| *known == name) {
            return Ok(of.clone());
        }
        let known = || VARIABLES.iter().map(|&(name, _)| name);
        if FUNCTIONS.iter().any(|&(function, _)| function == name) || LOOPS.contains(&name) {
            let remedy = format!("call it: `{}`", usage(name));
            return Err(self.fault_at(id, &format!("`{name}` is a function"), &remedy));
        }
        let all = || format!("there are {}", known().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "));
        let remedy = suggestion(name, known()).map_or_else(all, |known| format!("did you mean `{known}`?"));
        Err(self.fault_at(id, &format!("unknown name `{name}`"), &remedy))
    }

    /// `a.b`, and `has(a.b)`.
    fn member(&mut self, id: u64, select: &mut SelectExpr) -> Typed {
        let of = self.type_of(&mut select.operand)?;
        if is_named(&select.operand, "headers") {
            self.name_header(self.parsed.position(id), &select.field)?;
        }
        let of = match of {
            Type::Map(of) => *of,
            Type::Dyn => Type::Dyn,
            other => {
                let reason = format!("a value of type {other} has no members");
                let remedy = if usage(&select.field).is_empty() {
                    "leave the member out"
                } else {
                    "call the function: `()` is missing"
                };
                return Err(self.fault_at(id, &reason, remedy));
            }
        };
        Ok(if select.test { Type::Bool } else { of })
    }

    fn call(&mut self, id: u64, call: &mut CallExpr) -> Typed {
        if let Some(target) = &mut call.target {
            let of = self.method(id, &mut call.func_name, target, &mut call.args)?;
            if call.func_name.starts_with('@') {
                // Functions of our own take the text as their argument.
                call.args.extend(call.target.take().map(|target| *target));
            }
            return Ok(of);
        }
        match (call.func_name.as_str(), call.args.as_mut_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
                self.expect(left, &Type::Bool)?;
                self.expect(right, &Type::Bool)
            }
            (operators::LOGICAL_NOT, [operand]) => self.expect(operand, &Type::Bool),
            (operators::CONDITIONAL, [condition, yes, no]) => {
                self.expect(condition, &Type::Bool)?;
                Ok(self.type_of(yes)?.or(self.type_of(no)?))
            }
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => self.equality(id, left, right),
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                [left, right],
            ) => {
                let (of, other) = (self.type_of(left)?, self.type_of(right)?);
                let is_ordered = |of: &Type| of.is_number() || *of == Type::String;
                if !(is_ordered(&of) && is_ordered(&other) && of.meets(&other)) {
                    let reason = format!("{of} and {other} have no order");
                    return Err(self.fault_at(id, &reason, "compare numbers with numbers, and texts with texts"));
                }
                Ok(Type::Bool)
            }
            (
                operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO,
                [left, right],
            ) => self.arithmetic(id, &call.func_name, left, right),
            (operators::NEGATE, [operand]) => {
                let of = self.type_of(operand)?;
                if !of.is_number() {
                    return Err(self.fault_at(
                        id,
                        &format!("a value of type {of} has no negative"),
                        "write `!` for not",
                    ));
                }
                Ok(of)
            }
            (operators::INDEX, [of, index]) => self.index(id, of, index),
            (operators::IN, [value, container]) => self.is_in(id, value, container),
            ("size", [value]) => self.size(value),
            ("int" | "double" | "string", [value]) => {
                let of = self.type_of(value)?;
                if !(of.is_number() || of == Type::String || of == Type::Bool && call.func_name == "string") {
                    let reason = format!("`{}` cannot be made of {of}", call.func_name);
                    return Err(self.fault(value, reason, "give a number or a text"));
                }
                Ok(match call.func_name.as_str() {
                    "int" => Type::Int,
                    "double" => Type::Double,
                    _ => Type::String,
                })
            }
            (name, arguments) => {
                let count = arguments.len();
                Err(self.unknown_call(id, name, count))
            }
        }
    }

    fn method(&mut self, id: u64, name: &mut String, target: &mut IdedExpr, arguments: &mut Vec<IdedExpr>) -> Typed {
        match (name.as_str(), arguments.as_mut_slice()) {
            ("startsWith" | "endsWith" | "contains", [part]) => {
                self.expect(target, &Type::String)?;
                self.expect(part, &Type::String)?;
                Ok(Type::Bool)
            }
            ("matches", [pattern]) => {
                self.expect(target, &Type::String)?;
                let Expr::Literal(LiteralValue::String(text)) = &pattern.expr else {
                    self.type_of(pattern)?;
                    return Err(self.fault(
                        pattern,
                        "the pattern is not written out",
                        "write it as a text: `matches(\"...\")`",
                    ));
                };
                let compiled = pattern::compile(text.inner()).map_err(|reason| {
                    self.fault(
                        pattern,
                        reason,
                        "see the syntax of the Rust crate `regex`; r\"...\" needs no double backslashes",
                    )
                })?;
                *name = pattern::function(self.checked.patterns.len());
                self.checked.patterns.push(compiled);
                arguments.clear();
                Ok(Type::Bool)
            }
            ("size", []) => self.size(target),
            (name, arguments) => {
                // What is wrong with the target comes first.
                let count = arguments.len();
                self.type_of(target)?;
                Err(self.unknown_call(id, name, count))
            }
        }
    }

    fn expect(&mut self, node: &mut IdedExpr, wanted: &Type) -> Typed {
        let of = self.type_of(node)?;
        if of.is(wanted) {
            return Ok(wanted.clone());
        }
        let remedy = match (wanted, &of) {
            (Type::Bool, Type::String) => "compare it: `== \"...\"`",
            (Type::Bool, Type::Null) => "write true or false",
            (Type::Bool, _) => "compare it",
            (_, Type::Int | Type::Double) => "put it in quotes, or make it one: `string(...)`",
            _ => "give a text",
        };
        Err(self.fault(node, format!("{wanted} is needed here, and this is of type {of}"), remedy))
    }

    fn equality(&mut self, id: u64, left: &mut IdedExpr, right: &mut IdedExpr) -> Typed {
        let (of, other) = (self.type_of(left)?, self.type_of(right)?);
        if !of.meets(&other) {
            let remedy = match (&of, &other) {
                (Type::String, Type::Null) | (Type::Null, Type::String) => {
                    "a text that is not there is empty: compare it with \"\""
                }
                (Type::String, Type::Int | Type::Double) | (Type::Int | Type::Double, Type::String) => {
                    "put the number in quotes"
                }
                _ => "compare values of one type",
            };
            return Err(self.fault_at(id, &format!("{of} and {other} are never equal"), remedy));
        }
        self.check_call_type(left, right)?;
        self.check_call_type(right, left)?;
        Ok(Type::Bool)
    }

    fn arithmetic(&mut self, id: u64, operator: &str, left: &mut IdedExpr, right: &mut IdedExpr) -> Typed {
        let (of, other) = (self.type_of(left)?, self.type_of(right)?);
        let both = |wanted: &Type| of.is(wanted) && other.is(wanted);
        let is_sum = operator == operators::ADD;
        let mut possible = vec![Type::Int];
        if operator != operators::MODULO {
            possible.push(Type::Double);
        }
        if is_sum {
            possible.push(Type::String);
        }
        let is_list = |of: &Type| matches!(of, Type::List(_) | Type::Dyn);
        match (&of, &other) {
            (Type::Dyn, Type::Dyn) => Ok(Type::Dyn),
            (Type::List(_), _) | (_, Type::List(_)) if is_sum && is_list(&of) && is_list(&other) => Ok(of.or(other)),
            _ => possible.into_iter().find(both).ok_or_else(|| {
                let sign = operator.trim_matches('_');
                let remedy = match of.is_number() && other.is_number() {
                    true => "make both double: write 1.0 for 1, or `double(...)`",
                    false => "give values of one type",
                };
                self.fault_at(id, &format!("`{sign}` does not take {of} and {other}"), remedy)
            }),
        }
    }

    fn index(&mut self, id: u64, container: &mut IdedExpr, index: &mut IdedExpr) -> Typed {
        let (of, by) = (self.type_of(container)?, self.type_of(index)?);
        if is_named(container, "headers")
            && let Expr::Literal(LiteralValue::String(name)) = &index.expr
        {
            let position = self.start(index);
            self.name_header(position, name.inner())?;
        }
        match (of, by) {
            (Type::List(of), by) if by.is(&Type::Int) => Ok(*of),
            (Type::Map(of), by) if by.is(&Type::String) => Ok(*of),
            (Type::Dyn, by) if by.is(&Type::Int) || by.is(&Type::String) => Ok(Type::Dyn),
            (Type::List(_), by) => {
                Err(self.fault_at(id, &format!("a list has no element `[{by}]`"), "give the position, from 0"))
            }
            (Type::Map(_), by) => {
                Err(self.fault_at(id, &format!("no member has a name of type {by}"), "put it in quotes"))
            }
            (of, by) => {
                let reason = format!("a value of type {of} has no `[{by}]`");
                Err(self.fault_at(id, &reason, "use a list, or `startsWith`, `endsWith`, `contains` of a text"))
            }
        }
    }

    fn is_in(&mut self, id: u64, value: &mut IdedExpr, container: &mut IdedExpr) -> Typed {
        let (of, within) = (self.type_of(value)?, self.type_of(container)?);
        let is_possible = match &within {
            Type::Dyn => true,
            Type::List(other) => of.meets(other),
            Type::Map(_) => of.is(&Type::String),
            _ => false,
        };
        if !is_possible {
            let remedy = match within {
                Type::String => "write `text.contains(...)`",
                _ => "give a list of values of its type, or the name of a member",
            };
            return Err(self.fault_at(id, &format!("{of} is never in {within}"), remedy));
        }
        if is_named(container, "headers")
            && let Expr::Literal(LiteralValue::String(name)) = &value.expr
        {
            let position = self.start(value);
            self.name_header(position, name.inner())?;
        }
        if let Expr::List(list) = &container.expr {
            for element in &list.elements {
                self.check_call_type(value, element)?;
            }
        }
        Ok(Type::Bool)
    }

    fn size(&mut self, value: &mut IdedExpr) -> Typed {
        match self.type_of(value)? {
            Type::String | Type::List(_) | Type::Map(_) | Type::Dyn => Ok(Type::Int),
            of => Err(self.fault(value, format!("a value of type {of} has no size"), "give a text, a list or `data`")),
        }
    }

    /// `all`, `exists`, `exists_one`, `filter`, as the parser expands them (CEL's language definition, "Macros").
    fn loop_over(&mut self, id: u64, comprehension: &mut ComprehensionExpr) -> Typed {
        let (start, name) = self.parsed.called(id);
        let fault = |reason: &str, remedy: &str| {
            Err(FilterFault { offset: start, reason: reason.into(), remedy: remedy.into() })
        };
        if !LOOPS.contains(&name) {
            return fault(&format!("`{name}` has no use in a filter"), "use `exists`, `all` or `filter`");
        }
        if self.element.is_some() {
            return fault(
                &format!("`{name}` within a loop would look through everything again for each element"),
                "compare with single values there, or use two loops joined by `&&`",
            );
        }
        let of = match self.type_of(&mut comprehension.iter_range)? {
            Type::List(of) => *of,
            Type::Map(_) => Type::String,
            Type::Dyn => Type::Dyn,
            of => {
                let reason = format!("a value of type {of} has no elements");
                return Err(self.fault(&comprehension.iter_range, reason, "give a list, or `data` or a member of it"));
            }
        };
        let element = comprehension.iter_var.clone();
        if VARIABLES.iter().any(|(variable, _)| *variable == element) || element.starts_with('.') {
            return fault(&format!("`{element}` cannot name the elements"), "take a name of your own, e.g. `x`");
        }
        self.element = Some((element, of.clone()));
        let body = body(&mut comprehension.loop_step);
        let checked = match body {
            Some(body) => self.expect(body, &Type::Bool),
            None => fault(&format!("`{name}` is not understood"), "give a name and a condition: `all(x, x > 0)`"),
        };
        self.element = None;
        checked?;
        Ok(if name == "filter" { Type::List(Box::new(of)) } else { Type::Bool })
    }

    /// A literal that `call_type` is compared with.
    fn check_call_type(&self, variable: &IdedExpr, literal: &IdedExpr) -> Result<(), FilterFault> {
        let Expr::Literal(LiteralValue::String(text)) = &literal.expr else { return Ok(()) };
        let names = Call::ALL.map(Call::name);
        if !is_named(variable, "call_type") || names.contains(&text.inner()) {
            return Ok(());
        }
        let reason = format!("`{}` is no call type", shortened(text.inner()));
        Err(self.fault(literal, reason, &format!("write one of {}", names.join(", "))))
    }

    /// The name that `headers` is asked for.
    fn name_header(&mut self, offset: usize, name: &str) -> Result<(), FilterFault> {
        let lower = name.to_ascii_lowercase();
        if lower == name {
            self.unnamed_headers -= 1;
            self.checked.headers.add(name);
            return Ok(());
        }
        let reason = format!("no header is called `{}`: their names are in lower case", shortened(name));
        Err(FilterFault { offset, reason, remedy: format!("write `{}`", shortened(&lower)) })
    }

    fn unknown_call(&self, id: u64, name: &str, count: usize) -> FilterFault {
        let (offset, _) = self.parsed.called(id);
        let fault = |reason: String, remedy: String| FilterFault { offset, reason, remedy };
        let usage = usage(name);
        if !usage.is_empty() {
            let arguments = match count {
                0 => "no arguments".to_string(),
                1 => "one argument".to_string(),
                count => format!("{count} arguments"),
            };
            return fault(format!("`{name}` is not called like this, with {arguments}"), format!("write `{usage}`"));
        }
        let known = || FUNCTIONS.iter().map(|&(function, _)| function).chain(LOOPS);
        let remedy = suggestion(name, known()).map_or_else(
            || format!("there are {}", known().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
            |known| format!("did you mean `{known}`?"),
        );
        fault(format!("unknown function `{}`", shortened(name)), remedy)
    }

    fn fault_at(&self, id: u64, reason: &str, remedy: &str) -> FilterFault {
        FilterFault { offset: self.parsed.position(id), reason: reason.into(), remedy: remedy.into() }
    }

    fn fault(&self, node: &IdedExpr, reason: impl Into<String>, remedy: &str) -> FilterFault {
        FilterFault { offset: self.start(node), reason: reason.into(), remedy: remedy.into() }
    }

    /// Where the text of a node begins: its leftmost part.
    fn start(&self, node: &IdedExpr) -> usize {
        let own = self.parsed.position(node.id);
        match &node.expr {
            Expr::Call(CallExpr { target: Some(target), .. }) => self.start(target),
            // Operators: `_==_`, `@in`...
            Expr::Call(call) if !call.func_name.starts_with(|first: char| first.is_ascii_alphabetic()) => {
                call.args.first().map_or(own, |first| self.start(first).min(own))
            }
            Expr::Call(_) => self.parsed.called(node.id).0,
            Expr::Select(select) => self.start(&select.operand).min(own),
            Expr::Comprehension(comprehension) => self.start(&comprehension.iter_range).min(own),
            Expr::Literal(_) if self.parsed.text[..own].ends_with('-') => own - 1,
            _ => own,
        }
    }
}

/// The condition inside what the parser makes of a loop: beside the accumulator in `@result && x`, before it in
/// `x ? @result + 1 : @result`.
fn body(step: &mut IdedExpr) -> Option<&mut IdedExpr> {
    let Expr::Call(call) = &mut step.expr else { return None };
    match (call.func_name.as_str(), call.args.as_mut_slice()) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR, [_, condition]) => Some(condition),
        (operators::CONDITIONAL, [condition, _, _]) => Some(condition),
        _ => None,
    }
}

/// Does it go over a text to the end? Comparisons do not count: they end with the shorter of two, mostly a literal.
fn reads(node: &IdedExpr) -> bool {
    const READERS: [&str; 7] = ["contains", "matches", "size", "int", "double", "string", operators::ADD];
    matches!(&node.expr, Expr::Call(call) if READERS.contains(&call.func_name.as_str()))
}

fn is_named(node: &IdedExpr, name: &str) -> bool {
    matches!(&node.expr, Expr::Ident(variable) if variable == name)
}

/// How a function is called; empty where there is none of this name.
fn usage(name: &str) -> &'static str {
    if LOOPS.contains(&name) {
        return "list.exists(x, x == ...)";
    }
    FUNCTIONS.iter().find(|(function, _)| *function == name).map_or("", |(_, usage)| usage)
}

/// The known name that was probably meant.
fn suggestion<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let mut known: Vec<&str> = known.collect();
    if let Some((_, ours)) = FOREIGN.iter().find(|(foreign, ours)| *foreign == name && known.contains(ours)) {
        return known.drain(..).find(|known| known == ours);
    }
    let distance = |known: &str| {
        let letters = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "");
        strsim::damerau_levenshtein(&letters(name), &letters(known))
    };
    // A third of a name may be wrong, but not more than two letters.
    let is_near = |(distance, known): &(usize, &str)| *distance <= (known.len() / 3).min(2);
    known.into_iter().map(|known| (distance(known), known)).min().filter(is_near).map(|(_, known)| known)
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        None => text.to_string(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// The variable of a node, if it is one that fast tests know.
pub fn subject(node: &IdedExpr) -> Option<Subject> {
    match &node.expr {
        Expr::Ident(name) => Subject::named(name),
        _ => None,
    }
}
