//! An abstract pickle machine: it follows every opcode and builds a graph of plain values, but imports
//! nothing and calls nothing. A `REDUCE` of `torch._utils._rebuild_tensor_v2` becomes a tensor
//! description, any other call an opaque object.

mod calls;
mod machine;
mod opcodes;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use self::machine::{Machine, Refused};
use super::{Checked, Finding, State, globals};

/// Longest pickle that is read; a file of the predecessor has 8-40 KB.
pub(super) const MAX_LENGTH: u64 = 64 << 20;
/// Most that one pickle may build and hold at once, counted in values (see [`Value::weight`]).
const MAX_WEIGHT: usize = 2_000_000;
/// Longest name of a global or storage.
const MAX_NAME: usize = 1024;
/// Most axes of a tensor; torch allows 64.
const MAX_AXES: usize = 64;

/// Index of a value in the graph.
pub(super) type Id = usize;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
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
    /// The result of a call that is not modelled: callable, arguments, and states set later.
    Object(Vec<Id>),
}

impl Value {
    /// What it counts for: few bytes of a pickle can repeat long names and shapes through the memo.
    fn weight(&self) -> usize {
        1 + match self {
            Value::Str(text) => text.len() / 32,
            Value::Bytes(bytes) | Value::Number(bytes) => bytes.len() / 32,
            Value::Tensor(tensor) => tensor.shape.len() + tensor.stride.len(),
            _ => 0,
        }
    }
}

/// A reference to record `data/<key>`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// Storage class, such as `torch.FloatStorage`.
    pub class: Rc<str>,
    /// Name of the record below `data/`.
    pub key: String,
    /// Elements.
    pub numel: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub storage: Rc<Storage>,
    /// dtype, where the call states it (`_rebuild_tensor_v3`); else the storage's.
    pub dtype: Option<Rc<str>>,
    /// First element, counted in elements.
    pub offset: i64,
    pub shape: Vec<i64>,
    /// Elements between neighbours, per axis.
    pub stride: Vec<i64>,
    /// What a tensor subclass carries beside its numbers.
    pub extra: Vec<Id>,
}

/// What a pickle would build.
#[derive(Debug)]
pub(super) struct Graph {
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

    /// The storage that lies in the record of that name.
    pub fn storage_of(&self, record: &str) -> Option<&Storage> {
        self.storages.get(record.strip_prefix("data/")?).map(Rc::as_ref)
    }
}

/// Follows `program` to its STOP.
pub(super) fn scan(program: &[u8]) -> Checked<Graph> {
    scan_within(program, MAX_WEIGHT)
}

fn scan_within(program: &[u8], most: usize) -> Checked<Graph> {
    let mut machine = Machine {
        program,
        at: 0,
        values: Vec::new(),
        weight: 0,
        most,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        globals: BTreeSet::new(),
        refused: BTreeSet::new(),
        storages: HashMap::new(),
    };
    loop {
        let start = machine.at;
        match machine.step() {
            Ok(Some(root)) => {
                return Ok(Graph {
                    values: machine.values,
                    root,
                    globals: machine.globals,
                    refused_opcodes: machine.refused,
                    storages: machine.storages,
                });
            }
            Ok(None) => {}
            Err(Refused::Malformed(what)) => {
                return Err(Finding::bad("data.pkl", start as u64, format!("the pickle {what}")));
            }
            Err(Refused::TooLarge) => {
                let detail = format!("the pickle builds more than {most} values: over the cap");
                return Err(Finding::of(State::Unknown, "data.pkl", start as u64, detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_system_is_named_by_every_road() {
        for program in [
            b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.".as_slice(),
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
            b"(S'ls'\nIposix\n", // a line that is no INST
            b"(X\x02\0\0\0lsiposix\nsystem\n.",
            b"(cposix\nsystem\nX\x02\0\0\0lso.",
        ] {
            match scan(program) {
                Ok(graph) => assert_eq!(graph.refused_globals(), ["posix.system"]),
                Err(finding) => assert_eq!(finding.state, State::BadStructure),
            }
        }
    }

    #[test]
    fn nesting_does_not_exhaust_the_stack() {
        let mut deep = vec![b')'; 1];
        deep.extend(std::iter::repeat_n(0x85, 300_000));
        deep.push(b'.');
        assert!(scan(&deep).is_ok());
        let wide = vec![b')'; 1001];
        assert!(scan_within(&wide, 1000).is_err_and(|finding| finding.state == State::Unknown));
    }

    /// Few bytes that would hold gigabytes: each repeats something long or large that lies in the memo.
    #[test]
    fn repetition_is_weighed() {
        let axes = [&b"("[..], &[b'K', 1].repeat(MAX_AXES), b"tq\x01"].concat();
        let storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0";
        let tensor =
            [b"ctorch._utils\n_rebuild_tensor_v2\nq\x02", &axes[..], storage, b"h\x01h\x01tq\x03"].concat();
        let repeats: [(Vec<u8>, &[u8]); 6] = [
            (tensor, b"h\x02h\x03R0"),
            (b")q\0".to_vec(), b"h\0"),
            (b")".to_vec(), b"2"),
            (b"]q\0".to_vec(), b"h\0a"),
            (Vec::new(), b"("),
            (b")".to_vec(), b"\x94"),
        ];
        for (start, step) in repeats {
            let program = [start.as_slice(), &step.repeat(1001)].concat();
            let finding = scan_within(&program, 1000).expect_err("too much");
            assert_eq!(finding.state, State::Unknown, "{step:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end_in_a_graph_or_a_finding(program: Vec<u8>) {
            drop(scan(&program));
        }
    }
}
