//! Evaluation by the crate `cel`, of what is more than a test of a text. A variable is looked up when the expression comes to it, and
//! what is expensive, such as parsing the data, is done once in an evaluation.
//!
//! A panic here would end the node, so what could bring one about is kept out (`check`): no time, no maps, no optional values. What is left
//! computes with checked arithmetic. Costs are bounded: JSON is read up to a number of values, and every look at a variable is paid for.
use super::{Facts, Undecided, contents};
use crate::limits::{FILTER_STEPS_MAX, FILTER_VALUES_MAX};
use crate::proto::signalr::json;
use cel::common::ast::IdedExpr;
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value};
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

/// Functions and types of CEL. They never change, so all filters share them.
static LIBRARY: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// What evaluations of one filter have in common.
pub struct Program {
    context: Context<'static, 'static>,
    loops: Loops,
}

/// What one element of a loop costs.
#[derive(Clone, Copy, Default)]
pub struct Loops {
    /// Nodes inside loops ...
    pub nodes: usize,
    /// ... and those among them that read texts to their end.
    pub readers: usize,
}

impl Program {
    pub fn new(patterns: Vec<regex::Regex>, loops: Loops) -> Program {
        let mut context = Context::with_env(LIBRARY.clone());
        for (number, pattern) in patterns.into_iter().enumerate() {
            let matches = move |text: Arc<String>| pattern.is_match(&text);
            // It fails for names that the library has, and the library has none with an `@` and a number.
            let _ = context.add_function(&super::pattern::function(number), matches);
        }
        Program { context, loops }
    }
}

type Boxed<'a> = Box<dyn Val + 'a>;

/// A value that was made of JSON or of headers, and what it takes to look through all of it: how many values are in it, and steps for
/// reading its texts.
struct Made<'a> {
    value: Boxed<'a>,
    values: usize,
    text_steps: usize,
}

/// Reading 64 bytes takes as long as one step.
fn steps_of(text: &str) -> usize {
    text.len() / 64
}

/// One evaluation: the facts, and what has been made of them.
pub struct Evaluation<'a> {
    program: &'a Program,
    facts: &'a Facts<'a>,
    vm_id: OnceLock<String>,
    headers: OnceLock<Option<Made<'a>>>,
    claims: OnceLock<Option<Made<'a>>>,
    data: OnceLock<Option<Made<'a>>>,
    steps: AtomicUsize,
    /// Why a variable could not be had.
    refusal: OnceLock<String>,
}

impl<'a> Evaluation<'a> {
    pub fn new(program: &'a Program, facts: &'a Facts<'a>) -> Evaluation<'a> {
        Evaluation {
            program,
            facts,
            vm_id: OnceLock::new(),
            headers: OnceLock::new(),
            claims: OnceLock::new(),
            data: OnceLock::new(),
            steps: AtomicUsize::new(0),
            refusal: OnceLock::new(),
        }
    }

    pub fn holds(&self, expression: &IdedExpr) -> Result<bool, Undecided> {
        let context =
            Context::Child { parent: &self.program.context, variables: Default::default(), resolver: Some(self) };
        match Value::resolve_val(expression, &context) {
            Ok(value) => match value.downcast_ref::<CelBool>() {
                Some(holds) => Ok(*holds.inner()),
                None => Err(Undecided(format!("its result is of type {}, not bool", value.get_type().name()))),
            },
            Err(error) => Err(Undecided(match self.refusal.get() {
                Some(refusal) => refusal.clone(),
                None => sentence(&error),
            })),
        }
    }

    /// Pays for a look at a variable; false when there are no steps left.
    fn pays(&self, steps: usize) -> bool {
        let taken = self.steps.fetch_add(steps, Relaxed).saturating_add(steps);
        let pays = taken <= FILTER_STEPS_MAX;
        if !pays {
            // Nothing is looked up from here on, so what is left of the evaluation is short.
            self.steps.store(FILTER_STEPS_MAX, Relaxed);
            self.refuse(format!("it would take more than {FILTER_STEPS_MAX} steps for this message"));
        }
        pays
    }

    fn refuse(&self, reason: String) {
        // The first reason is the cause of others.
        let _ = self.refusal.set(reason);
    }

    fn text<'b>(&self, text: &'b str) -> Option<CowVal<'b, 'b>> {
        self.pays(1 + steps_of(text)).then(|| CowVal::owned(CelString::from(text)))
    }

    fn made<'b>(
        &'b self,
        name: &str,
        once: &'b OnceLock<Option<Made<'a>>>,
        make: impl FnOnce() -> Result<Made<'a>, String>,
    ) -> Option<CowVal<'b, 'b>> {
        let made = once.get_or_init(|| {
            let made = make().map_err(|reason| self.refuse(format!("{name} cannot be read: {reason}"))).ok()?;
            // A loop looks at every value once for each node of its body, at most, and reads texts where a node does that.
            let Loops { nodes, readers } = self.program.loops;
            let steps = made.values.saturating_mul(nodes).saturating_add(made.text_steps.saturating_mul(readers));
            self.pays(steps).then_some(made)
        });
        let made = made.as_ref()?;
        self.pays(made.values + made.text_steps).then(|| CowVal::Borrowed(&*made.value))
    }

    fn vm_id(&self) -> &str {
        self.vm_id.get_or_init(|| {
            let mut text = Vec::new();
            json::unescape(contents(self.facts.vm_id), &mut text);
            // Clients' messages are UTF-8; the caller checked.
            String::from_utf8(text).unwrap_or_default()
        })
    }

    /// Values of one name belong together (RFC 9110 section 5.2).
    fn headers(&self) -> Made<'a> {
        let mut joined: HashMap<CelMapKey<'a>, Boxed<'a>> = HashMap::with_capacity(self.facts.headers.len());
        for (name, value) in self.facts.headers {
            let value = match joined.remove(&CelMapKey::from(&**name)) {
                None => CelString::from(&**value),
                Some(before) => {
                    let before = before.downcast_ref::<CelString<'_>>().map(|text| text.inner().to_string());
                    CelString::from(format!("{}, {value}", before.unwrap_or_default()))
                }
            };
            joined.insert(CelMapKey::from(&**name), Box::new(value));
        }
        let texts = self.facts.headers.iter().map(|(name, value)| steps_of(name) + steps_of(value));
        Made { values: joined.len(), text_steps: texts.sum(), value: Box::new(CelMap::from(joined)) }
    }

    fn claims(&self) -> Result<Made<'a>, String> {
        match self.facts.claims {
            Some(claims) => make(claims),
            None => Ok(Made { value: Box::new(CelMap::from(HashMap::new())), values: 0, text_steps: 0 }),
        }
    }

    fn data(&self) -> Result<Made<'a>, String> {
        let Some(data) = self.facts.data else {
            return Ok(Made { value: Box::new(CelNull), values: 1, text_steps: 0 });
        };
        let mut json = serde_json::Deserializer::from_slice(data);
        let made = make(&mut json)?;
        json.end().map_err(|error| error.to_string())?;
        Ok(made)
    }
}

impl VariableResolver for Evaluation<'_> {
    /// Also asked for what is no variable: elements of loops, and `data.Name` as a whole.
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "vm_id" => self.text(self.vm_id()),
            "call_type" => self.text(self.facts.call.name()),
            "connection_id" => self.text(self.facts.connection_id),
            "user" => self.text(self.facts.user.unwrap_or_default()),
            "path" => self.text(self.facts.path),
            "headers" => self.made(variable, &self.headers, || Ok(self.headers())),
            "claims" => self.made(variable, &self.claims, || self.claims()),
            "data" => self.made(variable, &self.data, || self.data()),
            _ => None,
        }
    }
}

fn make<'a, D: Deserializer<'a>>(json: D) -> Result<Made<'a>, String> {
    let mut found = Found::default();
    let value = Json { found: &mut found }.deserialize(json).map_err(|error| error.to_string())?;
    Ok(Made { value, values: found.values, text_steps: found.text_steps })
}

/// What is in a piece of JSON.
#[derive(Default)]
struct Found {
    values: usize,
    text_steps: usize,
}

/// JSON as values of CEL, up to so many. Integers are int as far as they fit; all other numbers are double.
struct Json<'f> {
    found: &'f mut Found,
}

impl<'a> DeserializeSeed<'a> for Json<'_> {
    type Value = Boxed<'a>;

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<Boxed<'a>, D::Error> {
        if self.found.values == FILTER_VALUES_MAX {
            return Err(D::Error::custom(format_args!("it has more than {FILTER_VALUES_MAX} values")));
        }
        self.found.values += 1;
        json.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Json<'_> {
    type Value = Boxed<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Boxed<'a>, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Boxed<'a>, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Boxed<'a>, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Boxed<'a>, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelDouble::from(value as f64)),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Boxed<'a>, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Boxed<'a>, E> {
        self.found.text_steps += steps_of(text);
        Ok(Box::new(CelString::from(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Boxed<'a>, E> {
        self.found.text_steps += steps_of(text);
        Ok(Box::new(CelString::from(text.to_string())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut elements: A) -> Result<Boxed<'a>, A::Error> {
        let mut list: Vec<Boxed<'a>> = Vec::new();
        while let Some(element) = elements.next_element_seed(Json { found: &mut *self.found })? {
            list.push(element);
        }
        Ok(Box::new(CelList::from(list)))
    }

    /// Of members of one name the last counts, as in .NET.
    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<Boxed<'a>, A::Error> {
        let mut map: HashMap<CelMapKey<'a>, Boxed<'a>> = HashMap::new();
        while let Some(name) = members.next_key::<String>()? {
            self.found.text_steps += steps_of(&name);
            let value = members.next_value_seed(Json { found: &mut *self.found })?;
            map.insert(CelMapKey::from(name), value);
        }
        Ok(Box::new(CelMap::from(map)))
    }
}

/// An error in words. Those of `cel` show the values, which may be the whole data, and nobody's in a log.
fn sentence(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => {
            let shown: String = name.chars().take(40).collect();
            format!("there is no `{}`", shown.escape_debug())
        }
        ExecutionError::NoSuchOverload(error) => {
            format!("`{}` does not take {}", error.function().trim_matches('_'), error.argument_types().join(" and "))
        }
        ExecutionError::UnsupportedBinaryOperator(operator, left, right) => {
            format!("`{operator}` does not take {} and {}", left.type_of(), right.type_of())
        }
        ExecutionError::ValuesNotComparable(left, right) => {
            format!("{} and {} have no order", left.type_of(), right.type_of())
        }
        ExecutionError::UnsupportedIndex(index, of) => format!("{} has no `[{}]`", of.type_of(), index.type_of()),
        // The only type that the crate calls by its name in Rust is what patterns take.
        ExecutionError::UnexpectedType { want, .. } => {
            format!("a value is not of type {}", if want == "Arc<String>" { "string" } else { want })
        }
        ExecutionError::IndexOutOfBounds(Value::Int(index)) => format!("there is no element {index}"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "a division by zero".into(),
        ExecutionError::Overflow(..) => "a number beyond 64 bits".into(),
        ExecutionError::FunctionError { function, .. } => format!("`{function}` cannot make it of this value"),
        _ => "it cannot be evaluated".into(),
    }
}
