//! The state of the abstract machine, and the primitives that opcodes are made of.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::graph::{Id, MAX_NAME, Storage, Value};

/// Why a program is not followed to its end; the text continues "the pickle ...".
pub(super) enum Refused {
    Malformed(&'static str),
    /// As malformed, because the program ends too early.
    Cut(&'static str),
    TooLarge,
}

pub(super) type Step<T> = Result<T, Refused>;

/// An abstract pickle machine.
pub(super) struct Machine<'a> {
    pub program: &'a [u8],
    pub at: usize,
    pub values: Vec<Value>,
    /// What the machine holds, counted as [`Value::weight`] does.
    pub weight: usize,
    /// Most that it may hold.
    pub most: usize,
    pub stack: Vec<Id>,
    pub marks: Vec<usize>,
    pub memo: HashMap<u32, Id>,
    pub globals: BTreeSet<Rc<str>>,
    /// Names of the opcodes that `weights_only=True` refuses.
    pub refused: BTreeSet<&'static str>,
    pub storages: HashMap<String, Rc<Storage>>,
    /// Whether storages are referred to as torch < 1.6 did.
    pub is_legacy: bool,
}

impl<'a> Machine<'a> {
    /// A machine before the first opcode, which may hold `most` values.
    pub fn new(program: &'a [u8], most: usize) -> Self {
        Self {
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
            is_legacy: false,
        }
    }

    pub fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or(Refused::Malformed("declares an absurd length"))?;
        let bytes = self.program.get(self.at..end).ok_or(Refused::Cut("ends inside an opcode"))?;
        self.at = end;
        Ok(bytes)
    }

    pub fn take_array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.first_chunk::<N>().copied().ok_or(Refused::Cut("ends inside an opcode"))
    }

    pub fn length_8(&mut self) -> Step<usize> {
        self.take_array::<1>().map(|[byte]| usize::from(byte))
    }

    pub fn length_32(&mut self) -> Step<usize> {
        self.take_array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    pub fn length_64(&mut self) -> Step<usize> {
        let length = u64::from_le_bytes(self.take_array()?);
        usize::try_from(length).map_err(|_| Refused::Malformed("declares an absurd length"))
    }

    pub fn line(&mut self) -> Step<&'a str> {
        std::str::from_utf8(self.line_bytes()?)
            .map_err(|_| Refused::Malformed("holds a line that is not UTF-8"))
    }

    pub fn line_bytes(&mut self) -> Step<&'a [u8]> {
        let rest = self.program.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(length.ok_or(Refused::Cut("ends inside a line"))?)?;
        self.at += 1;
        Ok(line)
    }

    pub fn text(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        // Python allows lone surrogates here: they become the replacement character.
        self.push(Value::Str(String::from_utf8_lossy(bytes).into_owned()))
    }

    pub fn bytes(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?.to_vec();
        self.push(Value::Bytes(bytes))
    }

    pub fn long(&mut self, length: usize) -> Step<()> {
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

    pub fn push(&mut self, value: Value) -> Step<()> {
        self.grow(value.weight())?;
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    /// Accounts for `weight` more; refuses what exceeds the limit.
    pub fn grow(&mut self, weight: usize) -> Step<()> {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > self.most { Err(Refused::TooLarge) } else { Ok(()) }
    }

    /// Pushes a value that exists already.
    pub fn push_again(&mut self, id: Id) -> Step<()> {
        if self.stack.len() >= self.most {
            return Err(Refused::TooLarge);
        }
        self.stack.push(id);
        Ok(())
    }

    pub fn pop(&mut self) -> Step<Id> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err(Refused::Malformed("takes a value where there is a mark"));
        }
        self.stack.pop().ok_or(Refused::Malformed("takes a value from an empty stack"))
    }

    pub fn top(&self) -> Step<Id> {
        self.stack.last().copied().ok_or(Refused::Malformed("takes a value from an empty stack"))
    }

    pub fn mark(&mut self) -> Step<()> {
        if self.marks.len() >= self.most {
            return Err(Refused::TooLarge);
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    pub fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or(Refused::Malformed("needs a mark that was never set"))?;
        if mark > self.stack.len() {
            return Err(Refused::Malformed("needs a mark that was never set"));
        }
        Ok(self.stack.split_off(mark))
    }

    pub fn recall(&mut self, index: u32) -> Step<()> {
        let id = self.memo.get(&index).copied().ok_or(Refused::Malformed("recalls an empty memo slot"))?;
        self.push_again(id)
    }

    pub fn remember(&mut self, index: u32) -> Step<()> {
        let id = self.top()?;
        if self.memo.insert(index, id).is_none() && self.memo.len() > self.most {
            return Err(Refused::TooLarge);
        }
        Ok(())
    }

    pub fn extend(&mut self, items: Vec<Id>) -> Step<()> {
        let id = self.top()?;
        self.grow(items.len())?;
        match self.values.get_mut(id) {
            Some(Value::List(list) | Value::Object(list)) => list.extend(items),
            _ => return Err(Refused::Malformed("appends to a value that is no list")),
        }
        Ok(())
    }

    pub fn set_items(&mut self, items: &[Id]) -> Step<()> {
        let id = self.top()?;
        self.grow(items.len())?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.values.get_mut(id) {
            _ if !rest.is_empty() => return Err(Refused::Malformed("sets a key without a value")),
            Some(Value::Dict(dict)) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Some(Value::Object(parts)) => parts.extend(items),
            _ => return Err(Refused::Malformed("sets an item of a value that is no dict")),
        }
        Ok(())
    }

    pub fn value(&self, id: Id) -> &Value {
        self.values.get(id).unwrap_or(&Value::None)
    }

    pub fn as_name(&self, id: Id) -> Step<String> {
        match self.value(id) {
            Value::Str(text) if text.len() <= MAX_NAME => Ok(text.clone()),
            Value::Bytes(bytes) if bytes.len() <= MAX_NAME => Ok(String::from_utf8_lossy(bytes).into_owned()),
            _ => Err(Refused::Malformed("uses a value as a name that is no text")),
        }
    }
}
