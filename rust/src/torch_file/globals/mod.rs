//! The globals (callables) that a pickle may name, and the element types that they stand for.

mod allowed;
mod dtypes;
mod harm;

pub use self::allowed::ALLOWED_GLOBALS;
pub(super) use self::allowed::is_allowed;
pub(super) use self::dtypes::{dtype_name, item_size};
pub use self::harm::INERT_GLOBALS;
pub(super) use self::harm::is_dangerous;

/// Translates Python 2's names, which protocol 2 writes, as every unpickler does.
pub(super) fn python3_name(module: &str, name: &str) -> String {
    let module = match module {
        "__builtin__" | "exceptions" => "builtins",
        "copy_reg" => "copyreg",
        "commands" => "subprocess",
        "cPickle" => "pickle",
        "thread" => "_thread",
        "urllib2" => "urllib.request",
        other => other,
    };
    let name = match (module, name) {
        ("builtins", "xrange") => "range",
        ("builtins", "unicode") => "str",
        ("builtins", "long") => "int",
        (_, other) => other,
    };
    format!("{module}.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_for_the_search() {
        assert!(ALLOWED_GLOBALS.is_sorted());
        assert!(INERT_GLOBALS.is_sorted());
        assert!(is_allowed("torch.FloatStorage"));
        assert!(!is_allowed("posix.system"));
    }
}
