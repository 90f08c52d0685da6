//! What each opcode does.

use super::graph::{Id, Value};
use super::machine::{Machine, Refused, Step};

impl Machine<'_> {
    /// Executes one opcode; `Some` is the result of STOP.
    pub(super) fn step(&mut self) -> Step<Option<Id>> {
        let [opcode] = self.take_array()?;
        match opcode {
            0x80 => self.take(1).map(drop)?, // PROTO
            b'.' => return self.pop().map(Some),
            b'(' => self.mark()?,
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
            b'h' | b'j' | b'q' | b'r' => self.memo_step(opcode)?,
            b']' | 0x8f | b')' | 0x85..=0x87 | b't' | b'a' | b'e' | b'}' | b's' | b'u' => {
                self.container_step(opcode)?;
            }
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | b'G' | b'X' | b'U' => {
                self.constant_step(opcode)?;
            }
            other => self.refused_step(other)?,
        }
        Ok(None)
    }

    fn constant_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let bytes = self.take_array()?;
                self.push(Value::Int(i64::from(i32::from_le_bytes(bytes))))
            }
            b'K' => {
                let [byte] = self.take_array()?;
                self.push(Value::Int(i64::from(byte)))
            }
            b'M' => {
                let bytes = self.take_array()?;
                self.push(Value::Int(i64::from(u16::from_le_bytes(bytes))))
            }
            0x8a => {
                let length = self.length_8()?;
                self.long(length)
            }
            b'G' => {
                let bytes = self.take_array()?;
                self.push(Value::Float(f64::from_be_bytes(bytes)))
            }
            b'X' => {
                let length = self.length_32()?;
                self.text(length)
            }
            _ => {
                let length = self.length_8()?; // SHORT_BINSTRING
                self.bytes(length)
            }
        }
    }

    fn container_step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x84..opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items))
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            _ => {
                let items = self.pop_mark()?; // SETITEMS
                self.set_items(&items)
            }
        }
    }

    fn memo_step(&mut self, opcode: u8) -> Step<()> {
        let index = if matches!(opcode, b'h' | b'q') {
            let [index] = self.take_array()?;
            u32::from(index)
        } else {
            u32::from_le_bytes(self.take_array()?)
        };
        if matches!(opcode, b'h' | b'j') { self.recall(index) } else { self.remember(index) }
    }

    /// Executes an opcode that `weights_only=True` refuses: what it would import is reported all the same.
    fn refused_step(&mut self, opcode: u8) -> Step<()> {
        let name = refused_name(opcode).ok_or(Refused::Malformed("holds a byte that is no opcode"))?;
        self.refused.insert(name);
        match opcode {
            0x93 | b'i' | b'o' | 0x82..=0x84 | 0x92 => self.refused_call(opcode),
            0x8b..=0x8e | 0x96..=0x98 | b'B' | b'C' | b'T' | b'I' | b'L' | b'F' | b'S' | b'V' | b'P' => {
                self.refused_constant(opcode)
            }
            0x94 => {
                let index = self.memo.len() as u32;
                self.remember(index)
            }
            0x95 => self.take(8).map(drop),
            b'0' if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push_again(top)
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
            _ => {
                let index = self.line()?.parse().map_err(|_| Refused::Malformed("names no memo slot"))?;
                if opcode == b'g' { self.recall(index) } else { self.remember(index) }
            }
        }
    }

    fn refused_call(&mut self, opcode: u8) -> Step<()> {
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
            0x92 => {
                let keywords = self.pop()?;
                let arguments = self.pop()?;
                let callable = self.pop()?;
                self.object(callable, vec![arguments, keywords])
            }
            _ => {
                let width = [1usize, 2, 4].get(usize::from(opcode - 0x82)).copied().unwrap_or(1); // EXT1, 2, 4
                self.take(width)?;
                self.global("copyreg", "extension")
            }
        }
    }

    fn refused_constant(&mut self, opcode: u8) -> Step<()> {
        match opcode {
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
                // UNICODE holds bytes of Latin-1: they become the replacement character.
                let line = String::from_utf8_lossy(self.line_bytes()?);
                let text = line.trim_matches(['\'', '"']).to_owned();
                self.push(Value::Str(text))
            }
            _ => {
                let line = self.line()?.to_owned(); // PERSID
                self.push(Value::Str(line))
            }
        }
    }
}

/// The name, or the family's name, of an opcode that `weights_only=True` does not know; `None` for no opcode.
fn refused_name(opcode: u8) -> Option<&'static str> {
    Some(match opcode {
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
        _ => return None,
    })
}
