//! An expression as a tree of tests, with CEL's evaluation at the leaves that are more than a test of a text.
//!
//! `&&` and `||` do not depend on the order of their operands, errors included (CEL's language definition, "Logical Operators"), so the
//! tests stand first: where they decide, nothing is looked up, parsed or allocated.
use super::check::subject;
use super::evaluate::Evaluation;
use super::fast::{Needle, Test};
use super::{Facts, Undecided};
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};

pub enum Node {
    Always(bool),
    Test(Test),
    Not(Box<Node>),
    All(Box<[Node]>),
    Any(Box<[Node]>),
    Cel(IdedExpr),
}

impl Node {
    pub fn new(expression: IdedExpr) -> Node {
        match fast(&expression) {
            Some(node) => node,
            None => Node::split(expression),
        }
    }

    /// Operands of logical operators are nodes of their own.
    fn split(expression: IdedExpr) -> Node {
        let IdedExpr { id, expr: Expr::Call(CallExpr { target, func_name, args }) } = expression else {
            return Node::Cel(expression);
        };
        match func_name.as_str() {
            operators::LOGICAL_AND | operators::LOGICAL_OR => {
                let is_and = func_name == operators::LOGICAL_AND;
                let mut operands = Vec::new();
                for operand in args.into_iter().map(Node::new) {
                    match operand {
                        Node::All(nodes) if is_and => operands.extend(nodes),
                        Node::Any(nodes) if !is_and => operands.extend(nodes),
                        node => operands.push(node),
                    }
                }
                operands.sort_by_key(|operand| !operand.is_fast());
                if is_and { Node::All(operands.into()) } else { Node::Any(operands.into()) }
            }
            operators::LOGICAL_NOT => match args.into_iter().next() {
                Some(operand) => Node::Not(Box::new(Node::new(operand))),
                None => Node::Always(false),
            },
            _ => Node::Cel(IdedExpr { id, expr: Expr::Call(CallExpr { target, func_name, args }) }),
        }
    }

    /// Allocates nothing.
    pub fn is_fast(&self) -> bool {
        match self {
            Node::Always(_) | Node::Test(_) => true,
            Node::Not(node) => node.is_fast(),
            Node::All(nodes) | Node::Any(nodes) => nodes.iter().all(Node::is_fast),
            Node::Cel(_) => false,
        }
    }

    pub fn holds(&self, facts: &Facts<'_>, evaluation: &Evaluation<'_>) -> Result<bool, Undecided> {
        match self {
            Node::Always(holds) => Ok(*holds),
            Node::Test(test) => Ok(test.holds(facts)),
            Node::Not(node) => node.holds(facts, evaluation).map(|holds| !holds),
            Node::All(nodes) => decided(nodes, false, facts, evaluation),
            Node::Any(nodes) => decided(nodes, true, facts, evaluation),
            Node::Cel(expression) => evaluation.holds(expression),
        }
    }
}

/// `deciding` as soon as one is; what cannot be evaluated counts only if none is.
fn decided(nodes: &[Node], deciding: bool, facts: &Facts<'_>, evaluation: &Evaluation<'_>) -> Result<bool, Undecided> {
    let mut result = Ok(!deciding);
    for node in nodes {
        match node.holds(facts, evaluation) {
            Ok(holds) if holds == deciding => return Ok(deciding),
            Ok(_) => {}
            Err(undecided) => result = result.and(Err(undecided)),
        }
    }
    result
}

/// What needs no evaluation by CEL.
fn fast(expression: &IdedExpr) -> Option<Node> {
    let call = match &expression.expr {
        Expr::Literal(LiteralValue::Boolean(holds)) => return Some(Node::Always(*holds.inner())),
        Expr::Call(call) => call,
        _ => return None,
    };
    let test = match (call.func_name.as_str(), &call.target, call.args.as_slice()) {
        (operators::EQUALS | operators::NOT_EQUALS, None, [left, right]) => {
            let (subject, literal) = match subject(left) {
                Some(subject) => (subject, text(right)?),
                None => (subject(right)?, text(left)?),
            };
            Test::Equals(subject, literal.as_bytes().into())
        }
        (operators::IN, None, [value, IdedExpr { expr: Expr::List(list), .. }]) => {
            let literals = list.elements.iter().map(|element| Some(text(element)?.as_bytes().into()));
            Test::IsOneOf(subject(value)?, literals.collect::<Option<_>>()?)
        }
        ("startsWith", Some(target), [part]) => Test::StartsWith(subject(target)?, text(part)?.as_bytes().into()),
        ("endsWith", Some(target), [part]) => Test::EndsWith(subject(target)?, text(part)?.as_bytes().into()),
        ("contains", Some(target), [part]) => Test::Contains(subject(target)?, Needle::new(text(part)?)),
        _ => return None,
    };
    let test = Node::Test(test.settled());
    Some(if call.func_name == operators::NOT_EQUALS { Node::Not(Box::new(test)) } else { test })
}

fn text(node: &IdedExpr) -> Option<&str> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
