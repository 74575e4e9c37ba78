//! The subset of Python's pickle that describes tensors.
//!
//! A pickle is a program for a stack machine that may call any function. This machine calls none:
//! it knows the few functions that PyTorch names for tensors and dictionaries, and keeps anything
//! else as a value without contents. Values refer to one another by number, so that no file makes
//! it recurse.
//!
//! Source: CPython's `pickletools`, protocols 2 to 5; PyTorch's `torch/serialization.py`.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

/// Most values of a pickle. A checkpoint with its optimizer's state has some ten thousand.
const MAX_VALUES: usize = 1 << 22;

/// A value by its number.
pub(super) type Id = usize;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A whole number, or a truth value.
    Int(i64),
    /// Text, or the bytes of one in Python 2.
    Text(String),
    /// A function or class: its module, a space, its name.
    Global(String),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    /// A dictionary.
    Dict(Vec<(Id, Id)>),
    /// The values of tensors, which are another file of the archive: the tuple that names them.
    Storage(Id),
    /// A tensor: the arguments of `_rebuild_tensor_v2`.
    Tensor(Vec<Id>),
    /// Something else.
    Other,
}

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle describes.
    pub root: Id,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// Errors: it breaks off; it has instructions that tensors do not need; it is too large.
    pub fn read(bytes: &[u8]) -> Result<Pickle> {
        let mut machine = Machine { rest: bytes, ..Machine::default() };
        while !machine.step()? {}
        let root = machine.pop()?;
        Ok(Pickle { values: machine.values, root })
    }

    /// A value.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// A value that is text.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A value that is a whole number of at least 0.
    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A tuple of such numbers.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match self.get(id) {
            Value::Tuple(items) => items.iter().map(|item| self.size(*item)).collect(),
            _ => None,
        }
    }
}

/// The stack machine.
#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    /// Executes an instruction. Returns whether it was the last.
    fn step(&mut self) -> Result<bool> {
        let [op] = self.take()?;
        match op {
            b'.' => return Ok(true),
            0x80 => _ = self.take::<1>()?, // PROTO
            0x95 => _ = self.take::<8>()?, // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => _ = self.pop()?,
            b'1' => _ = self.pop_mark()?,
            b'2' => self.stack.push(self.top()?),
            b'N' => self.push(Value::Other)?,
            0x88 | 0x89 => self.push(Value::Int(i64::from(op == 0x88)))?,
            b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(op)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.text(op)?,
            b'C' | b'B' | 0x8e | 0x96 => self.bytes(op)?,
            b'c' | 0x93 => self.global(op)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(op)?,
            b')' | b']' | b'}' | 0x8f | b't' | b'l' | b'd' | 0x91 | 0x85..=0x87 => {
                self.collection(op)?;
            }
            b'a' | b'e' | 0x90 | b's' | b'u' => self.add(op)?,
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.object(op)?,
            other => bail!("instruction {other:#04x} is not one that tensors need"),
        }
        Ok(false)
    }

    fn number(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b'J' => Value::Int(i32::from_le_bytes(self.take()?).into()),
            b'K' => Value::Int(u8::from_le_bytes(self.take()?).into()),
            b'M' => Value::Int(u16::from_le_bytes(self.take()?).into()),
            b'G' => {
                self.take::<8>()?;
                Value::Other
            }
            _ => {
                let [len] = self.take()?;
                let bytes = self.take_len(len.into())?;
                let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
                let mut whole = [fill; 8];
                match whole.get_mut(..bytes.len()) {
                    Some(low) => {
                        low.copy_from_slice(bytes);
                        Value::Int(i64::from_le_bytes(whole))
                    }
                    None => Value::Other,
                }
            }
        };
        self.push(value)
    }

    fn text(&mut self, op: u8) -> Result<()> {
        let len = match op {
            0x8c | b'U' => u8::from_le_bytes(self.take()?).into(),
            0x8d => u64::from_le_bytes(self.take()?),
            _ => u32::from_le_bytes(self.take()?).into(),
        };
        let bytes = self.take_len(len)?;
        self.push(Value::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn bytes(&mut self, op: u8) -> Result<()> {
        let len = match op {
            b'C' => u8::from_le_bytes(self.take()?).into(),
            b'B' => u32::from_le_bytes(self.take()?).into(),
            _ => u64::from_le_bytes(self.take()?),
        };
        self.take_len(len)?;
        self.push(Value::Other)
    }

    fn global(&mut self, op: u8) -> Result<()> {
        let name = if op == b'c' {
            let (module, name) = (self.line()?, self.line()?);
            format!("{module} {name}")
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (&self.values[module], &self.values[name]) {
                (Value::Text(module), Value::Text(name)) => format!("{module} {name}"),
                _ => bail!("the name of a function is no text"),
            }
        };
        self.push(Value::Global(name))
    }

    fn memo(&mut self, op: u8) -> Result<()> {
        let slot = match op {
            0x94 => self.memo.len(),
            b'q' | b'h' => u8::from_le_bytes(self.take()?).into(),
            _ => u32::from_le_bytes(self.take()?) as usize,
        };
        if matches!(op, b'h' | b'j') {
            let id =
                *self.memo.get(&slot).with_context(|| format!("nothing is noted at {slot}"))?;
            self.stack.push(id);
        } else {
            self.memo.insert(slot, self.top()?);
        }
        Ok(())
    }

    fn collection(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b')' => Value::Tuple(vec![]),
            b']' | 0x8f => Value::List(vec![]),
            b'}' => Value::Dict(vec![]),
            b't' => Value::Tuple(self.pop_mark()?),
            b'l' | 0x91 => Value::List(self.pop_mark()?),
            b'd' => Value::Dict(pairs(&self.pop_mark()?)?),
            _ => {
                let len = usize::from(op - 0x84);
                let at = self.stack.len().checked_sub(len).context("the stack is empty")?;
                Value::Tuple(self.stack.split_off(at))
            }
        };
        self.push(value)
    }

    /// Adds items to a list, a set or a dictionary. Other objects take items without contents.
    fn add(&mut self, op: u8) -> Result<()> {
        let items = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let into = self.top()?;
        match (&mut self.values[into], op) {
            (Value::Dict(entries), b's' | b'u') => entries.extend(pairs(&items)?),
            (Value::List(list), b'a' | b'e' | 0x90) => list.extend(items),
            _ => {}
        }
        Ok(())
    }

    /// The result of a call that is not made, the state of an object, or a reference to a storage.
    fn object(&mut self, op: u8) -> Result<()> {
        if op == b'b' {
            return self.pop().map(|_| ());
        }
        let args = self.pop()?;
        if op == b'Q' {
            return self.push(Value::Storage(args));
        }
        if op == 0x92 {
            self.pop()?;
        }
        let called = self.pop()?;
        let value = match (&self.values[called], &self.values[args]) {
            (Value::Global(name), Value::Tuple(args)) => match (name.as_str(), args.as_slice()) {
                ("collections OrderedDict", []) => Value::Dict(vec![]),
                ("torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor", args) => {
                    Value::Tensor(args.to_vec())
                }
                ("torch._utils _rebuild_parameter", [tensor, ..]) => {
                    self.stack.push(*tensor);
                    return Ok(());
                }
                _ => Value::Other,
            },
            _ => Value::Other,
        };
        self.push(value)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.values.len() >= MAX_VALUES {
            bail!("it has over {MAX_VALUES} values");
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().context("the stack is empty")
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().context("the stack is empty")
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.context("a mark is missing")?))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk().context("it breaks off")?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn take_len(&mut self, len: u64) -> Result<&'a [u8]> {
        let len = usize::try_from(len).ok();
        let split = len.and_then(|len| self.rest.split_at_checked(len));
        let (bytes, rest) = split.context("it breaks off")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|b| *b == b'\n').context("it breaks off")?;
        let line = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        self.rest = &self.rest[end + 1..];
        Ok(line)
    }
}

/// Keys and values that follow one another.
fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        bail!("a key has no value");
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}
