//! Pickles, as far as tensors in dictionaries need them. What a pickle would make is recorded, and nothing of it is
//! called.
//!
//! The pickle is untrusted. Its objects lie side by side and name each other by number, so that neither objects that
//! hold themselves nor deep ones cost more than the bytes that say so.

use crate::error::{Error, ErrorKind, Result};
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};

/// The most objects that are made, several for each tensor, and the most that are remembered.
const OBJECT_LIMIT: usize = 1 << 21;
/// The most objects and marks that wait on the stack; Python itself puts a thousand there.
const STACK_LIMIT: usize = 1 << 20;
/// The most bytes of a foreign name that a message repeats.
const NAME_LIMIT: usize = 80;

/// The opcodes that are known, by the names of Python's `pickletools`.
pub(super) mod opcode {
    pub const PROTO: u8 = 0x80;
    pub const FRAME: u8 = 0x95;
    pub const STOP: u8 = b'.';
    pub const MARK: u8 = b'(';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const NONE: u8 = b'N';
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const BININT2: u8 = b'M';
    pub const LONG1: u8 = 0x8a;
    pub const BINFLOAT: u8 = b'G';
    pub const BINUNICODE: u8 = b'X';
    pub const SHORT_BINUNICODE: u8 = 0x8c;
    pub const BINUNICODE8: u8 = 0x8d;
    pub const BINBYTES: u8 = b'B';
    pub const SHORT_BINBYTES: u8 = b'C';
    pub const EMPTY_LIST: u8 = b']';
    pub const LIST: u8 = b'l';
    pub const APPEND: u8 = b'a';
    pub const APPENDS: u8 = b'e';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const TUPLE: u8 = b't';
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const EMPTY_DICT: u8 = b'}';
    pub const DICT: u8 = b'd';
    pub const SETITEM: u8 = b's';
    pub const SETITEMS: u8 = b'u';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const MEMOIZE: u8 = 0x94;
    pub const BINGET: u8 = b'h';
    pub const LONG_BINGET: u8 = b'j';
    pub const GLOBAL: u8 = b'c';
    pub const STACK_GLOBAL: u8 = 0x93;
    pub const REDUCE: u8 = b'R';
    pub const BUILD: u8 = b'b';
    pub const BINPERSID: u8 = b'Q';
}

/// An object of a pickle, by number.
pub(super) type Id = usize;

/// What a pickle makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    /// What no tensor is made of: nothing, a truth, a float, bytes, a large integer.
    Other,
    /// A list, whose items no tensor is made of.
    List,
    /// An integer of 64 bits.
    Integer(i64),
    /// Text.
    Text(String),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A dictionary in the order in which it was filled.
    Dict(Vec<(Id, Id)>),
    /// Something of a module of Python.
    Global(Global),
    /// A tensor, of the arguments that PyTorch would make it of.
    Tensor(Id),
    /// A parameter, likewise.
    Parameter(Id),
    /// Values outside the pickle, of the tuple that says where.
    Storage(Id),
}

/// What a pickle may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`, which begin with the same arguments.
    Tensor,
    /// `torch._utils._rebuild_parameter`
    Parameter,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_parameter") => Self::Parameter,
            ("torch", "DoubleStorage") => Self::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            ("torch", "IntStorage") => Self::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Self::Storage(Dtype::I16),
            ("torch", "CharStorage") => Self::Storage(Dtype::I8),
            ("torch", "ByteStorage") | ("torch.storage", "UntypedStorage") => Self::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Self::Storage(Dtype::BOOL),
            _ => {
                let name: String = format!("{module}.{name}").chars().take(NAME_LIMIT).collect();
                return Err(Error::unsupported(format!(
                    "expected tensors and plain values, got `{name}`, which is not known and was not run; save \
                     `model.state_dict()`"
                )));
            }
        })
    }
}

/// The objects of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    objects: Vec<Object>,
    /// The object that was pickled.
    pub top: Id,
}

impl Pickle {
    /// Reads a pickle of the protocols 2 to 5.
    pub fn read(code: &[u8]) -> Result<Self> {
        let mut machine =
            Machine { code, objects: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        match machine.byte()? {
            opcode::PROTO => machine.protocol()?,
            other => return Err(broken(format!("expected its protocol first, got the byte {other:#04x}"))),
        }
        loop {
            match machine.byte()? {
                opcode::STOP => return Ok(Self { top: machine.pop()?, objects: machine.objects }),
                other => machine.step(other)?,
            }
        }
    }

    /// The object of this number.
    pub fn get(&self, id: Id) -> &Object {
        self.objects.get(id).unwrap_or(&Object::Other)
    }

    /// The values of a dictionary under keys that are text; none of what is no dictionary.
    pub fn named(&self, id: Id) -> BTreeMap<&str, Id> {
        let Object::Dict(entries) = self.get(id) else { return BTreeMap::new() };
        entries.iter().filter_map(|&(key, value)| Some((self.text(key)?, value))).collect()
    }

    /// The items of a tuple; none of what is no tuple.
    pub fn tuple(&self, id: Id) -> &[Id] {
        if let Object::Tuple(items) = self.get(id) { items } else { &[] }
    }

    /// The text that an object is.
    pub fn text(&self, id: Id) -> Option<&str> {
        if let Object::Text(text) = self.get(id) { Some(text) } else { None }
    }

    /// The size or place that an object is.
    pub fn size(&self, id: Id) -> Option<usize> {
        if let Object::Integer(n) = self.get(id) { usize::try_from(*n).ok() } else { None }
    }
}

fn broken(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::File, message)
}

/// Python's pickle machine.
struct Machine<'a> {
    /// What has not been read.
    code: &'a [u8],
    objects: Vec<Object>,
    stack: Vec<Id>,
    /// How high the stack was at each mark; what lies below the last is out of reach until that is taken away.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            opcode::PROTO => self.protocol(),
            opcode::FRAME => self.bytes(8).map(|_| ()),
            opcode::MARK => {
                self.marks.push(self.stack.len());
                self.check_height()
            }
            opcode::POP => self.pop().map(|_| ()),
            opcode::POP_MARK => self.pop_mark().map(|_| ()),
            opcode::NONE | opcode::NEWTRUE | opcode::NEWFALSE => self.push(Object::Other),
            opcode::BINFLOAT => self.bytes(8).and_then(|_| self.push(Object::Other)),
            opcode::BININT | opcode::BININT1 | opcode::BININT2 | opcode::LONG1 => self.integer(code),
            opcode::BINUNICODE | opcode::SHORT_BINUNICODE | opcode::BINUNICODE8 => self.text(code),
            opcode::SHORT_BINBYTES => self.counted(1).and_then(|_| self.push(Object::Other)),
            opcode::BINBYTES => self.counted(4).and_then(|_| self.push(Object::Other)),
            opcode::EMPTY_LIST => self.push(Object::List),
            opcode::LIST => self.pop_mark().and_then(|_| self.push(Object::List)),
            opcode::APPEND => self.pop().and_then(|_| self.check_list()),
            opcode::APPENDS => self.pop_mark().and_then(|_| self.check_list()),
            opcode::EMPTY_TUPLE => self.push(Object::Tuple(Vec::new())),
            opcode::TUPLE => self.pop_mark().and_then(|items| self.push(Object::Tuple(items))),
            opcode::TUPLE1 | opcode::TUPLE2 | opcode::TUPLE3 => {
                let mut items = (opcode::TUPLE1..=code).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                self.push(Object::Tuple(items))
            }
            opcode::EMPTY_DICT => self.push(Object::Dict(Vec::new())),
            opcode::DICT => {
                let items = self.pop_mark()?;
                self.push(Object::Dict(Vec::new())).and_then(|()| self.set_items(&items))
            }
            opcode::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])
            }
            opcode::SETITEMS => self.pop_mark().and_then(|items| self.set_items(&items)),
            opcode::BINPUT => self.number(1).and_then(|at| self.put(at)),
            opcode::LONG_BINPUT => self.number(4).and_then(|at| self.put(at)),
            opcode::MEMOIZE => self.put(self.memo.len()),
            opcode::BINGET => self.number(1).and_then(|at| self.recall(at)),
            opcode::LONG_BINGET => self.number(4).and_then(|at| self.recall(at)),
            opcode::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(Global::named(module, name)?))
            }
            opcode::STACK_GLOBAL => self.stack_global(),
            opcode::REDUCE => self.reduce(),
            opcode::BUILD => self.build(),
            opcode::BINPERSID => {
                let place = self.pop()?;
                self.push(Object::Storage(place))
            }
            other => {
                let expected = "expected the opcodes that dictionaries of tensors need";
                Err(Error::unsupported(format!("{expected}, got {other:#04x}; save `model.state_dict()`")))
            }
        }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let cut = || broken(format!("expected {count} more bytes, got {}", self.code.len()));
        let (bytes, rest) = self.code.split_at_checked(count).ok_or_else(cut)?;
        self.code = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?.first().copied().unwrap_or_default())
    }

    /// A number without a sign, of at most 8 bytes.
    fn number(&mut self, width: usize) -> Result<usize> {
        let number = self.bytes(width)?.iter().rev().fold(0u64, |n, &byte| (n << 8) | u64::from(byte));
        usize::try_from(number)
            .map_err(|_| broken(format!("expected a number that this host can count to, got {number}")))
    }

    /// Bytes after their count.
    fn counted(&mut self, width: usize) -> Result<&'a [u8]> {
        let count = self.number(width)?;
        self.bytes(count)
    }

    /// Text up to the end of its line.
    fn line(&mut self) -> Result<&'a str> {
        let end =
            self.code.iter().position(|&b| b == b'\n').ok_or_else(|| broken("expected a line, got no end of one"))?;
        let line = utf8(self.bytes(end)?)?;
        self.byte()?;
        Ok(line)
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(Error::unsupported(format!("expected a pickle of the protocols 2 to 5, got {other}"))),
        }
    }

    fn integer(&mut self, code: u8) -> Result<()> {
        let bytes = match code {
            opcode::BININT => self.bytes(4)?,
            opcode::BININT1 => self.bytes(1)?,
            opcode::BININT2 => self.bytes(2)?,
            _ => self.counted(1)?,
        };
        // What has more bytes is the seed of a random number generator or the like.
        if bytes.len() > 8 {
            return self.push(Object::Other);
        }
        let signed = matches!(code, opcode::BININT | opcode::LONG1);
        let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
        let number = bytes.iter().rev().fold(if negative { -1i64 } else { 0 }, |n, &byte| (n << 8) | i64::from(byte));
        self.push(Object::Integer(number))
    }

    fn text(&mut self, code: u8) -> Result<()> {
        let bytes = self.counted(match code {
            opcode::SHORT_BINUNICODE => 1,
            opcode::BINUNICODE => 4,
            _ => 8,
        })?;
        self.push(Object::Text(utf8(bytes)?.to_string()))
    }

    fn check_height(&self) -> Result<()> {
        match self.stack.len() + self.marks.len() <= STACK_LIMIT {
            true => Ok(()),
            false => Err(broken(format!("expected at most {STACK_LIMIT} objects that wait"))),
        }
    }

    fn push(&mut self, object: Object) -> Result<()> {
        if self.objects.len() >= OBJECT_LIMIT {
            return Err(broken(format!("expected at most {OBJECT_LIMIT} objects")));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        self.check_height()
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn top(&self) -> Result<Id> {
        let reach = self.marks.last().copied().unwrap_or(0)..;
        let top = self.stack.get(reach).and_then(|s| s.last()).copied();
        top.ok_or_else(|| broken("expected an object, got none"))
    }

    /// What came after the last mark, which goes too.
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let at = self.marks.pop().ok_or_else(|| broken("expected a mark, got none"))?;
        Ok(self.stack.split_off(at.min(self.stack.len())))
    }

    fn top_object(&mut self) -> Result<&mut Object> {
        let id = self.top()?;
        self.objects.get_mut(id).ok_or_else(|| Error::internal(format!("pickle: there is no object {id}")))
    }

    fn check_list(&mut self) -> Result<()> {
        match self.top_object()? {
            Object::List => Ok(()),
            other => Err(broken(format!("expected a list to append to, got {}", other.kind()))),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let Object::Dict(entries) = self.top_object()? else {
            return Err(broken("expected a dictionary to fill"));
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(broken("expected a value for each key"));
        }
        entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn put(&mut self, at: usize) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() >= OBJECT_LIMIT {
            return Err(broken(format!("expected at most {OBJECT_LIMIT} objects that are remembered")));
        }
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: usize) -> Result<()> {
        let id =
            self.memo.get(&at).ok_or_else(|| broken(format!("expected what is remembered as {at}, got nothing")))?;
        self.stack.push(*id);
        self.check_height()
    }

    fn stack_global(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        let global = match (self.objects.get(module), self.objects.get(name)) {
            (Some(Object::Text(module)), Some(Object::Text(name))) => Global::named(module, name)?,
            _ => return Err(broken("expected the names of a module and of something in it")),
        };
        self.push(Object::Global(global))
    }

    /// Records a call.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let empty = matches!(self.objects.get(arguments), Some(Object::Tuple(items)) if items.is_empty());
        let made = match self.objects.get(function) {
            Some(Object::Global(Global::OrderedDict)) if empty => Object::Dict(Vec::new()),
            Some(Object::Global(Global::Tensor)) => Object::Tensor(arguments),
            Some(Object::Global(Global::Parameter)) => Object::Parameter(arguments),
            _ => return Err(Error::unsupported("expected calls that make tensors, parameters and empty dictionaries")),
        };
        self.push(made)
    }

    /// Passes over the attributes of a dictionary: a state dict's `_metadata`.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.top_object()? {
            Object::Dict(_) => Ok(()),
            other => Err(Error::unsupported(format!("attributes of {}", other.kind()))),
        }
    }
}

impl Object {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Other => "a plain value",
            Self::List => "a list",
            Self::Integer(_) => "an integer",
            Self::Text(_) => "text",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a class or function",
            Self::Tensor(_) => "a tensor",
            Self::Parameter(_) => "a parameter",
            Self::Storage(_) => "a storage",
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|e| broken(format!("expected text in UTF-8: {e}")).caused_by(e))
}
