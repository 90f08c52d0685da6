//! Globals that `weights_only=True` refuses: harmless, dangerous, or somebody's own.

use super::allowed::is_allowed;

/// Globals that `weights_only=True` refuses but that are harmless to import and call: those of MONAI
/// MetaTensors with metadata, of NumPy arrays, of paths, dates and the standard library's containers.
pub const INERT_GLOBALS: &[&str] = &[
    "argparse.Namespace",
    "builtins.Ellipsis",
    "builtins.NotImplemented",
    "builtins.bool",
    "builtins.bytes",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "collections.defaultdict",
    "collections.deque",
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "monai.utils.enums.TraceKeys",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.PurePosixPath",
    "pathlib._local.PureWindowsPath",
    "pathlib._local.WindowsPath",
    "types.SimpleNamespace",
    "uuid.SafeUUID",
    "uuid.UUID",
];

/// Modules of Python's standard library (3.11 to 3.14): whatever of them is not inert has no business in a
/// file of tensors.
const STANDARD_MODULES: &str = "\
    __future__ __hello__ abc aifc annotationlib antigravity argparse array ast asynchat asyncio asyncore atexit \
    audioop base64 bdb binascii bisect builtins bz2 cProfile calendar cgi cgitb chunk cmath cmd code codecs \
    codeop collections colorsys compileall compression concurrent configparser contextlib contextvars copy \
    copyreg crypt csv ctypes curses dataclasses datetime dbm decimal difflib dis distutils doctest email \
    encodings ensurepip enum errno faulthandler fcntl filecmp fileinput fnmatch fractions ftplib functools gc \
    genericpath getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http idlelib imaplib \
    imghdr imp importlib inspect io ipaddress itertools json keyword lib2to3 linecache locale logging lzma \
    mailbox mailcap marshal math mimetypes mmap modulefinder msilib msvcrt multiprocessing netrc nis nntplib \
    nt ntpath nturl2path numbers opcode operator optparse os ossaudiodev pathlib pdb pickle pickletools pipes \
    pkgutil platform plistlib poplib posix posixpath pprint profile pstats pty pwd py_compile pyclbr pydoc \
    pydoc_data pyexpat queue quopri random re readline reprlib resource rlcompleter runpy sched secrets select \
    selectors shelve shlex shutil signal site smtpd smtplib sndhdr socket socketserver spwd sqlite3 sre_compile \
    sre_constants sre_parse ssl stat statistics string stringprep struct subprocess sunau symtable sys \
    sysconfig syslog tabnanny tarfile telnetlib tempfile termios textwrap this threading time timeit tkinter \
    token tokenize tomllib trace traceback tracemalloc tty turtle turtledemo types typing unicodedata unittest \
    urllib uu uuid venv warnings wave weakref webbrowser winreg winsound wsgiref xdrlib xml xmlrpc zipapp \
    zipfile zipimport zlib zoneinfo";

/// Packages and functions beyond the standard library that are known to run what they are given, or to load
/// pickles: a name counts with everything below it.
const RUNNERS: &[&str] = &[
    "IPython",
    "cloudpickle",
    "dill",
    "joblib",
    "jsonpickle",
    "numpy.distutils",
    "numpy.f2py",
    "numpy.lib",
    "numpy.load",
    "numpy.testing",
    "pandas.io",
    "pandas.read_pickle",
    "pip",
    "pkg_resources",
    "pytest",
    "requests",
    "setuptools",
    "torch._dynamo",
    "torch._inductor",
    "torch.classes",
    "torch.compile",
    "torch.distributed",
    "torch.fx",
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.multiprocessing",
    "torch.ops",
    "torch.package",
    "torch.serialization",
    "torch.testing",
    "torch.utils",
    "yaml",
];

/// Whether importing and calling the global is harmless.
fn is_inert(name: &str) -> bool {
    is_allowed(name)
        || INERT_GLOBALS.binary_search(&name).is_ok()
        || name
            .strip_prefix("numpy.dtypes.")
            .is_some_and(|class| class.ends_with("DType") && !class.contains('.'))
}

/// Whether the global is no class of tensors or metadata, but something that runs, opens or imports what a
/// file tells it: the standard library beside [`INERT_GLOBALS`], and known runners.
///
/// The rest are own classes of a user or of another package: importing them may run code as well, but a file
/// that names them is no evidence of harm.
pub fn is_dangerous(name: &str) -> bool {
    if is_inert(name) {
        return false;
    }
    let top = name.split('.').next().unwrap_or_default();
    // The private modules of the standard library are named after the public ones, or are its machinery.
    STANDARD_MODULES.split_ascii_whitespace().any(|module| module == top)
        || (top.starts_with('_') && top != "__main__" && top != "__mp_main__" && top != "__torch__")
        || RUNNERS.iter().any(|runner| {
            name.strip_prefix(runner).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dtype_classes_are_inert_in_numpy_dtypes() {
        assert!(is_inert("numpy.dtypes.Float64DType"));
        assert!(!is_inert("numpy.dtypes.sys.modules.DType"));
        assert!(!is_inert("builtins.eval"));
    }

    #[test]
    fn the_standard_library_and_runners_are_dangerous_and_own_classes_are_not() {
        for name in
            ["posix.system", "builtins.eval", "os.path.join", "_thread.x", "torch.hub.load", "pip.main"]
        {
            assert!(is_dangerous(name), "{name}");
        }
        for name in ["__main__.Point", "project.Point", "datetime.date", "builtins.Ellipsis", "pipeline.Item"]
        {
            assert!(!is_dangerous(name), "{name}");
        }
    }
}
