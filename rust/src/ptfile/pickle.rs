//! An abstract pickle machine: it follows every opcode and builds a graph of plain values, but imports
//! nothing and calls nothing. A `REDUCE` of `torch._utils._rebuild_tensor_v2` becomes a tensor
//! description, any other call an opaque object.

use std::collections::{BTreeSet, HashMap};

use super::{Checked, Finding, State, globals};

/// Longest pickle that is read; a file of the predecessor has 8-40 KB.
pub(super) const MAX_LENGTH: u64 = 64 << 20;
/// Most values one pickle may build.
const MAX_VALUES: usize = 2_000_000;
/// Longest name of a global or storage: it is copied at each use, so a long one would multiply.
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
    Global(String),
    Storage(Storage),
    Tensor(Tensor),
    /// The result of a call that is not modelled: callable, arguments, and states set later.
    Object(Vec<Id>),
}

/// A reference to record `data/<key>`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// Storage class, such as `torch.FloatStorage`.
    pub class: String,
    /// Name of the record below `data/`.
    pub key: String,
    /// Elements.
    pub numel: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub storage: Storage,
    /// dtype, where the call states it (`_rebuild_tensor_v3`); else the storage's.
    pub dtype: Option<String>,
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
    pub globals: BTreeSet<String>,
    pub refused_opcodes: BTreeSet<&'static str>,
    /// Every storage that is referred to, by its key.
    pub storages: HashMap<String, Storage>,
}

impl Graph {
    pub fn get(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }

    /// The globals that `weights_only=True` refuses.
    pub fn refused_globals(&self) -> Vec<String> {
        self.globals.iter().filter(|name| !globals::is_allowed(name)).cloned().collect()
    }

    /// The storage that lies in the record of that name.
    pub fn storage_of(&self, record: &str) -> Option<&Storage> {
        self.storages.get(record.strip_prefix("data/")?)
    }
}

/// Follows `program` to its STOP.
pub(super) fn scan(program: &[u8]) -> Checked<Graph> {
    let mut machine = Machine {
        program,
        at: 0,
        values: Vec::new(),
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
                let detail = format!("the pickle builds more than {MAX_VALUES} values: over the cap");
                return Err(Finding::of(State::Unknown, "data.pkl", start as u64, detail));
            }
        }
    }
}

enum Refused {
    Malformed(&'static str),
    TooLarge,
}

type Step<T> = Result<T, Refused>;

struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    globals: BTreeSet<String>,
    refused: BTreeSet<&'static str>,
    storages: HashMap<String, Storage>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; `Some` is the result of STOP.
    fn step(&mut self) -> Step<Option<Id>> {
        let [opcode] = self.take_array()?;
        match opcode {
            0x80 => self.take(1).map(drop)?,
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let bytes = self.take_array()?;
                self.push(Value::Int(i64::from(i32::from_le_bytes(bytes))))?;
            }
            b'K' => {
                let [byte] = self.take_array()?;
                self.push(Value::Int(i64::from(byte)))?;
            }
            b'M' => {
                let bytes = self.take_array()?;
                self.push(Value::Int(i64::from(u16::from_le_bytes(bytes))))?;
            }
            0x8a => {
                let length = self.length_8()?;
                self.long(length)?;
            }
            b'G' => {
                let bytes = self.take_array()?;
                self.push(Value::Float(f64::from_be_bytes(bytes)))?;
            }
            b'X' => {
                let length = self.length_32()?;
                self.text(length)?;
            }
            b'U' => {
                let length = self.length_8()?;
                self.bytes(length)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x84..opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'h' => {
                let [index] = self.take_array()?;
                self.recall(u32::from(index))?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.recall(index)?;
            }
            b'q' => {
                let [index] = self.take_array()?;
                self.remember(u32::from(index))?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.remember(index)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let callable = self.pop()?;
                let result = self.call(callable, arguments);
                self.push(result)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            other => self.refused_step(other)?,
        }
        Ok(None)
    }

    /// The opcodes that `weights_only=True` does not know, followed all the same: what they import counts.
    fn refused_step(&mut self, opcode: u8) -> Step<()> {
        let name = match opcode {
            0x93 => "STACK_GLOBAL",
            b'i' => "INST",
            b'o' => "OBJ",
            0x82..=0x84 => "EXT",
            0x92 => "NEWOBJ_EX",
            0x94 => "MEMOIZE",
            0x95 => "FRAME",
            0x8c | 0x8d => "SHORT_BINUNICODE",
            b'B' | b'C' | 0x8e => "BINBYTES",
            0x96..=0x98 => "BYTEARRAY8",
            0x8b => "LONG4",
            b'I' | b'L' | b'F' => "INT",
            b'S' | b'T' | b'V' => "STRING",
            b'0'..=b'2' => "POP",
            b'd' | b'l' => "DICT",
            b'g' | b'p' => "GET",
            b'P' => "PERSID",
            0x90 | 0x91 => "ADDITEMS",
            _ => return Err(Refused::Malformed("holds a byte that is no opcode")),
        };
        self.refused.insert(name);
        match opcode {
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (module, name) = (self.as_name(module)?, self.as_name(name)?);
                self.global(&module, &name)
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
                let callable = self.pop()?;
                let arguments = self.pop_mark()?;
                self.object(callable, arguments)
            }
            b'o' => {
                let mut items = self.pop_mark()?;
                if items.is_empty() {
                    return Err(Refused::Malformed("builds an object of nothing"));
                }
                let callable = items.remove(0);
                self.object(callable, items)
            }
            0x82..=0x84 => {
                let width = [1usize, 2, 4].get(usize::from(opcode - 0x82)).copied().unwrap_or(1);
                self.take(width)?;
                self.global("copyreg", "extension")
            }
            0x92 => {
                let named = self.pop()?;
                let arguments = self.pop()?;
                let callable = self.pop()?;
                self.object(callable, vec![arguments, named])
            }
            0x94 => {
                let index = self.memo.len() as u32;
                self.remember(index)
            }
            0x95 => self.take(8).map(drop),
            0x8c => {
                let length = self.length_8()?;
                self.text(length)
            }
            0x8d => {
                let length = self.length_64()?;
                self.text(length)
            }
            b'B' | b'T' => {
                let length = self.length_32()?;
                self.bytes(length)
            }
            b'C' => {
                let length = self.length_8()?;
                self.bytes(length)
            }
            0x8e | 0x96 => {
                let length = self.length_64()?;
                self.bytes(length)
            }
            0x97 => self.push(Value::Bytes(Vec::new())),
            0x98 => Ok(()),
            0x8b => {
                let length = self.length_32()?;
                self.long(length)
            }
            b'I' | b'L' | b'F' => {
                let line = self.line()?.as_bytes().to_vec();
                self.push(Value::Number(line))
            }
            b'S' | b'V' => {
                let line = self.line()?.trim_matches(['\'', '"']).to_owned();
                self.push(Value::Str(line))
            }
            b'0' => {
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                    return Ok(());
                }
                self.pop().map(drop)
            }
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set_items(&items)
            }
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))
            }
            0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            b'g' | b'p' => {
                let index = self.line()?.parse().map_err(|_| Refused::Malformed("names no memo slot"))?;
                if opcode == b'g' { self.recall(index) } else { self.remember(index) }
            }
            _ => {
                let line = self.line()?.to_owned(); // PERSID
                self.push(Value::Str(line))
            }
        }
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or(Refused::Malformed("declares an absurd length"))?;
        let bytes = self.program.get(self.at..end).ok_or(Refused::Malformed("ends inside an opcode"))?;
        self.at = end;
        Ok(bytes)
    }

    fn take_array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.first_chunk::<N>().copied().ok_or(Refused::Malformed("ends inside an opcode"))
    }

    fn length_8(&mut self) -> Step<usize> {
        self.take_array::<1>().map(|[byte]| usize::from(byte))
    }

    fn length_32(&mut self) -> Step<usize> {
        self.take_array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn length_64(&mut self) -> Step<usize> {
        let length = u64::from_le_bytes(self.take_array()?);
        usize::try_from(length).map_err(|_| Refused::Malformed("declares an absurd length"))
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(length.ok_or(Refused::Malformed("ends inside a line"))?)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| Refused::Malformed("holds a line that is not UTF-8"))
    }

    fn text(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        // Python allows lone surrogates here; they compare like the replacement character.
        self.push(Value::Str(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn bytes(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?.to_vec();
        self.push(Value::Bytes(bytes))
    }

    fn long(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return self.push(Value::Number(bytes.to_vec()));
        }
        let negative = bytes.last().is_some_and(|&byte| byte & 0x80 != 0);
        let mut wide = if negative { [0xFF; 8] } else { [0; 8] };
        for (to, &from) in wide.iter_mut().zip(bytes) {
            *to = from;
        }
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn push(&mut self, value: Value) -> Step<()> {
        if self.values.len() >= MAX_VALUES {
            return Err(Refused::TooLarge);
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Step<Id> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err(Refused::Malformed("takes a value where a mark lies"));
        }
        self.stack.pop().ok_or(Refused::Malformed("takes a value from an empty stack"))
    }

    fn top(&self) -> Step<Id> {
        self.stack.last().copied().ok_or(Refused::Malformed("takes a value from an empty stack"))
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or(Refused::Malformed("looks for a mark that was never set"))?;
        if mark > self.stack.len() {
            return Err(Refused::Malformed("looks for a mark that was never set"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn recall(&mut self, index: u32) -> Step<()> {
        let id = self.memo.get(&index).copied().ok_or(Refused::Malformed("recalls an empty memo slot"))?;
        self.stack.push(id);
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Step<()> {
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Step<()> {
        let id = self.top()?;
        match self.values.get_mut(id) {
            Some(Value::List(list) | Value::Object(list)) => list.extend(items),
            _ => return Err(Refused::Malformed("appends to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Step<()> {
        let id = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.values.get_mut(id) {
            _ if !rest.is_empty() => return Err(Refused::Malformed("sets a key without a value")),
            Some(Value::Dict(dict)) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Some(Value::Object(parts)) => parts.extend(items),
            _ => return Err(Refused::Malformed("sets an item of something that is no dict")),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let full = format!("{}.{name}", globals::modern_module(module));
        self.globals.insert(full.clone());
        self.push(Value::Global(full))
    }

    fn object(&mut self, callable: Id, arguments: Vec<Id>) -> Step<()> {
        let mut parts = vec![callable];
        parts.extend(arguments);
        self.push(Value::Object(parts))
    }

    fn build(&mut self, state: Id) -> Step<()> {
        let id = self.top()?;
        match self.values.get_mut(id) {
            Some(Value::Object(parts)) => parts.push(state),
            Some(Value::Tensor(tensor)) => tensor.extra.push(state),
            Some(_) => {} // an OrderedDict's attributes
            None => return Err(Refused::Malformed("sets the state of nothing")),
        }
        Ok(())
    }

    fn value(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }

    fn as_name(&self, id: Id) -> Step<String> {
        match self.value(id) {
            Value::Str(text) if text.len() <= MAX_NAME => Ok(text.clone()),
            Value::Bytes(bytes) if bytes.len() <= MAX_NAME => Ok(String::from_utf8_lossy(bytes).into_owned()),
            _ => Err(Refused::Malformed("uses something as a name that is none")),
        }
    }

    fn call(&self, callable: Id, arguments: Id) -> Value {
        let opaque = || Value::Object(vec![callable, arguments]);
        let (Value::Global(name), Value::Tuple(items)) = (self.value(callable), self.value(arguments)) else {
            return opaque();
        };
        match name.as_str() {
            "collections.OrderedDict" if items.is_empty() => Value::Dict(Vec::new()),
            "torch._tensor._rebuild_from_type_v2" => {
                let [function, class, inner, state] = items.as_slice() else { return opaque() };
                match (self.value(*function), self.value(*inner)) {
                    (Value::Global(function), Value::Tuple(inner)) if is_rebuild(function) => {
                        self.tensor(inner).map_or_else(opaque, |tensor| {
                            Value::Tensor(Tensor { extra: vec![*class, *state], ..tensor })
                        })
                    }
                    _ => opaque(),
                }
            }
            "torch._utils._rebuild_parameter" => match items.first().map(|&id| self.value(id)) {
                Some(tensor @ Value::Tensor(_)) => tensor.clone(),
                _ => opaque(),
            },
            function if is_rebuild(function) => self.tensor(items).map_or_else(opaque, Value::Tensor),
            _ => opaque(),
        }
    }

    fn tensor(&self, items: &[Id]) -> Option<Tensor> {
        let mut items = items.iter().map(|&id| self.value(id));
        let (Value::Storage(storage), Value::Int(offset)) = (items.next()?, items.next()?) else {
            return None;
        };
        let (shape, stride) = (self.integers(items.next()?)?, self.integers(items.next()?)?);
        let dtype = items.nth(2).and_then(|value| match value {
            Value::Global(name) if globals::item_size(name).is_some() => Some(name.clone()),
            _ => None,
        });
        Some(Tensor { storage: storage.clone(), dtype, offset: *offset, shape, stride, extra: Vec::new() })
    }

    /// A tuple or list of integers, or the call that a pickled `torch.Size` is.
    fn integers(&self, value: &Value) -> Option<Vec<i64>> {
        let arguments = match value {
            Value::Object(parts) => match self.value(*parts.get(1)?) {
                Value::Tuple(outer) => self.value(*outer.first()?),
                _ => return None,
            },
            plain => plain,
        };
        let (Value::Tuple(items) | Value::List(items)) = arguments else { return None };
        if items.len() > MAX_AXES {
            return None;
        }
        let integer = |&id: &Id| match self.value(id) {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        items.iter().map(integer).collect()
    }

    /// `('storage', class, key, location, numel)`, the one persistent id that torch writes.
    fn persistent(&mut self, id: Id) -> Step<()> {
        let broken = Refused::Malformed("refers to a storage in a way that torch does not write");
        let Value::Tuple(items) = self.value(id) else { return Err(broken) };
        let [tag, class, key, _, numel] = items.as_slice() else { return Err(broken) };
        let (Value::Global(class), Value::Int(numel)) = (self.value(*class), self.value(*numel)) else {
            return Err(broken);
        };
        let Ok(numel) = u64::try_from(*numel) else { return Err(broken) };
        if self.as_name(*tag)? != "storage" || class.len() > MAX_NAME {
            return Err(broken);
        }
        let storage = Storage { class: class.clone(), key: self.as_name(*key)?, numel };
        let known = self.storages.entry(storage.key.clone()).or_insert_with(|| storage.clone());
        if *known != storage {
            return Err(Refused::Malformed("describes one storage in two ways"));
        }
        self.push(Value::Storage(storage))
    }
}

/// The calls whose first arguments are storage, offset, shape, stride.
fn is_rebuild(function: &str) -> bool {
    function
        .strip_prefix("torch._utils._rebuild_")
        .is_some_and(|rest| matches!(rest, "tensor" | "tensor_v2" | "tensor_v3" | "qtensor"))
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
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        assert!(scan(&deep).is_ok());
        let wide = vec![b')'; MAX_VALUES + 1];
        assert_eq!(scan(&wide).unwrap_err().state, State::Unknown);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end_in_a_graph_or_a_finding(program: Vec<u8>) {
            drop(scan(&program));
        }
    }
}
