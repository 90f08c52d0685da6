//! Globals, calls and persistent ids: how a pickle's values become storages and tensors.

use std::rc::Rc;

use super::super::globals;
use super::graph::{Composite, Id, MAX_AXES, MAX_NAME, Storage, Tensor, Value};
use super::machine::{Machine, Refused, Step};

impl Machine<'_> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Step<()> {
        let full = globals::python3_name(module, name);
        let shared = match self.globals.get(full.as_str()) {
            Some(same) => Rc::clone(same),
            None => {
                self.grow(full.len() / 32)?;
                let new: Rc<str> = full.into();
                self.globals.insert(Rc::clone(&new));
                new
            }
        };
        self.push(Value::Global(shared))
    }

    pub(super) fn object(&mut self, callable: Id, arguments: Vec<Id>) -> Step<()> {
        let mut parts = vec![callable];
        parts.extend(arguments);
        self.push(Value::Object(parts))
    }

    pub(super) fn build(&mut self, state: Id) -> Step<()> {
        let id = self.top()?;
        match self.values.get_mut(id) {
            Some(Value::Object(parts)) => parts.push(state),
            Some(Value::Tensor(tensor)) => tensor.extra.push(state),
            Some(_) => {} // an OrderedDict's attributes
            None => return Err(Refused::Malformed("sets the state of nothing")),
        }
        Ok(())
    }

    pub(super) fn call(&self, callable: Id, arguments: Id) -> Value {
        let opaque = || Value::Object(vec![callable, arguments]);
        let (Value::Global(name), Value::Tuple(items)) = (self.value(callable), self.value(arguments)) else {
            return opaque();
        };
        match &**name {
            "collections.OrderedDict" if items.is_empty() => Value::Dict(Vec::new()),
            "torch._tensor._rebuild_from_type_v2" => {
                let [function, class, inner, state] = items.as_slice() else { return opaque() };
                match (self.value(*function), self.value(*inner)) {
                    (Value::Global(function), Value::Tuple(inner)) if is_rebuild(function) => {
                        self.tensor(inner).map_or_else(opaque, |tensor| {
                            Value::Tensor(Box::new(Tensor { extra: vec![*class, *state], ..tensor }))
                        })
                    }
                    (Value::Global(function), Value::Tuple(inner)) => {
                        self.composite(function, inner, callable, arguments).unwrap_or_else(opaque)
                    }
                    _ => opaque(),
                }
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                match items.first().map(|&id| self.value(id)) {
                    Some(tensor @ (Value::Tensor(_) | Value::Composite(_))) => tensor.clone(),
                    _ => opaque(),
                }
            }
            function if is_rebuild(function) => {
                self.tensor(items).map_or_else(opaque, |tensor| Value::Tensor(Box::new(tensor)))
            }
            function => self.composite(function, items, callable, arguments).unwrap_or_else(opaque),
        }
    }

    /// A sparse or nested tensor, if the function makes one of its arguments.
    fn composite(&self, function: &str, items: &[Id], callable: Id, arguments: Id) -> Option<Value> {
        let (shape, elements) = match function {
            "torch._utils._rebuild_sparse_tensor" => self.sparse(items)?,
            "torch._utils._rebuild_nested_tensor" => {
                let [buffer, sizes, ..] = items else { return None };
                let [rows, axes] = self.shape_of(*sizes)? else { return None };
                (self.nested_shape(*rows, usize::try_from(*axes).ok()?, &[])?, *buffer)
            }
            "torch.nested._internal.nested_tensor._rebuild_njt" => {
                let Value::Dict(pairs) = self.value(*items.first()?) else { return None };
                let named = |wanted: &str| {
                    let is_named = |key: &Id| matches!(self.value(*key), Value::Str(name) if name == wanted);
                    pairs.iter().find(|(key, _)| is_named(key)).map(|&(_, value)| value)
                };
                let (values, offsets) = (named("values")?, named("offsets")?);
                let [ends] = self.shape_of(offsets)? else { return None };
                let (_, rest) = self.shape_of(values)?.split_first()?;
                (self.nested_shape(ends.checked_sub(1)?, 1, rest)?, values)
            }
            _ => return None,
        };
        self.shape_of(elements)?;
        Some(Value::Composite(Box::new(Composite { shape, elements, parts: vec![callable, arguments] })))
    }

    /// Shape and values of `(layout, (indices, values, size))`: the values stand before the size.
    fn sparse(&self, items: &[Id]) -> Option<(Vec<i64>, Id)> {
        let Value::Tuple(parts) = self.value(*items.get(1)?) else { return None };
        parts.windows(2).find_map(|pair| {
            let [values, size] = pair else { return None };
            self.shape_of(*values)?;
            Some((self.integers(self.value(*size))?, *values))
        })
    }

    fn nested_shape(&self, rows: i64, ragged: usize, rest: &[i64]) -> Option<Vec<i64>> {
        if ragged.checked_add(rest.len())? >= MAX_AXES {
            return None;
        }
        let ragged = std::iter::repeat_n(-1, ragged);
        Some(std::iter::once(rows).chain(ragged).chain(rest.iter().copied()).collect())
    }

    fn shape_of(&self, id: Id) -> Option<&[i64]> {
        match self.value(id) {
            Value::Tensor(tensor) => Some(&tensor.shape),
            _ => None,
        }
    }

    fn tensor(&self, items: &[Id]) -> Option<Tensor> {
        let mut items = items.iter().map(|&id| self.value(id));
        let (Value::Storage(storage), Value::Int(offset)) = (items.next()?, items.next()?) else {
            return None;
        };
        let (shape, stride) = (self.integers(items.next()?)?, self.integers(items.next()?)?);
        let dtype = items.nth(2).and_then(|value| match value {
            Value::Global(name) if globals::item_size(name).is_some() => Some(Rc::clone(name)),
            _ => None,
        });
        Some(Tensor { storage: Rc::clone(storage), dtype, offset: *offset, shape, stride, extra: Vec::new() })
    }

    /// Integers from a tuple, a list, or the call that a pickled `torch.Size` is.
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

    /// Pushes the storage of `('storage', class, key, location, numel)`, the only persistent id that torch
    /// writes; torch < 1.6 added a view, and referred to classes of modules by `('module', class, ...)`.
    pub(super) fn persistent(&mut self, id: Id) -> Step<()> {
        let broken = Refused::Malformed("refers to a storage in a way that torch does not write");
        let Value::Tuple(items) = self.value(id) else { return Err(broken) };
        let items = match items.as_slice() {
            [module, class, ..] if self.is_legacy && self.as_name(*module)? == "module" => {
                return self.push_again(*class);
            }
            [storage @ .., _view] if self.is_legacy => storage,
            all => all,
        };
        let [tag, class, key, _, numel] = items else { return Err(broken) };
        let (Value::Global(class), Value::Int(numel)) = (self.value(*class), self.value(*numel)) else {
            return Err(broken);
        };
        let Ok(numel) = u64::try_from(*numel) else { return Err(broken) };
        if self.as_name(*tag)? != "storage" || class.len() > MAX_NAME {
            return Err(broken);
        }
        let key = self.as_name(*key)?;
        let storage = match self.storages.get(&key) {
            Some(same) if same.class != *class || same.numel != numel => {
                return Err(Refused::Malformed("describes one storage in two different ways"));
            }
            Some(same) => Rc::clone(same),
            None => {
                let new = Rc::new(Storage { class: Rc::clone(class), key: key.clone(), numel });
                self.grow(key.len() / 32)?;
                self.storages.insert(key, Rc::clone(&new));
                new
            }
        };
        self.push(Value::Storage(storage))
    }
}

/// Whether the first arguments of a call are storage, offset, shape and stride.
fn is_rebuild(function: &str) -> bool {
    function
        .strip_prefix("torch._utils._rebuild_")
        .is_some_and(|rest| matches!(rest, "tensor" | "tensor_v2" | "tensor_v3" | "qtensor"))
}
