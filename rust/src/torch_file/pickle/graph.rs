//! The values that a pickle would build, which refer to each other by number.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::super::globals;

/// Longest name of a global or storage.
pub const MAX_NAME: usize = 1024;
/// Most axes of a tensor; torch allows 64.
pub const MAX_AXES: usize = 64;

/// Index of a value in the graph.
pub type Id = usize;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, or text that stands for a number.
    Number(Vec<u8>),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    /// List or set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Box<Tensor>),
    /// A sparse or nested tensor.
    Composite(Box<Composite>),
    /// The result of a call that is not modelled: callable, arguments, and states set later.
    Object(Vec<Id>),
}

impl Value {
    /// Its share of the limit: few bytes of a pickle can repeat long names and shapes through the memo.
    pub fn weight(&self) -> usize {
        1 + match self {
            Value::Str(text) => text.len() / 32,
            Value::Bytes(bytes) | Value::Number(bytes) => bytes.len() / 32,
            Value::Tensor(tensor) => tensor.shape.len() + tensor.stride.len(),
            Value::Composite(composite) => composite.shape.len() + composite.parts.len(),
            _ => 0,
        }
    }
}

/// A reference to record `data/<key>`.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Storage class, such as `torch.FloatStorage`.
    pub class: Rc<str>,
    /// Name of the record below `data/`.
    pub key: String,
    /// Elements.
    pub numel: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub storage: Rc<Storage>,
    /// dtype, where the call states it (`_rebuild_tensor_v3`); else the storage's.
    pub dtype: Option<Rc<str>>,
    /// First element, counted in elements.
    pub offset: i64,
    pub shape: Vec<i64>,
    /// Elements between neighbours, per axis.
    pub stride: Vec<i64>,
    /// What a subclass of tensor holds beside its elements.
    pub extra: Vec<Id>,
}

/// A tensor that is made of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Composite {
    /// Elements per axis; -1 for an axis of a nested tensor whose parts differ, as torch shows it.
    pub shape: Vec<i64>,
    /// The tensor that holds the elements.
    pub elements: Id,
    /// The callable and its arguments.
    pub parts: Vec<Id>,
}

/// The values of a pickle.
#[derive(Debug)]
pub struct Graph {
    /// Bytes of the pickle, with its STOP opcode.
    pub length: usize,
    pub values: Vec<Value>,
    pub root: Id,
    pub globals: BTreeSet<Rc<str>>,
    pub refused_opcodes: BTreeSet<&'static str>,
    /// Every storage that is referred to, by its key.
    pub storages: HashMap<String, Rc<Storage>>,
}

impl Graph {
    pub fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }

    /// The globals that `weights_only=True` refuses.
    pub fn refused_globals(&self) -> Vec<String> {
        self.globals.iter().filter(|name| !globals::is_allowed(name)).map(|name| name.to_string()).collect()
    }
}
