//! An abstract pickle machine: follows every opcode and builds a graph of plain values, but imports and calls
//! nothing.
//!
//! A `REDUCE` of `torch._utils._rebuild_tensor_v2` becomes the description of a tensor, any other call an
//! opaque object.

mod calls;
mod graph;
mod machine;
mod opcodes;

pub use self::graph::{Graph, Id, Storage, Tensor, Value};
use self::machine::{Machine, Refused};
use super::verdict::{Checked, Finding, State};

/// Longest pickle in bytes that is read; usual ones have 8 to 40 KB.
pub(super) const MAX_LENGTH: u64 = 64 << 20;
/// Most that one pickle may build, counted as [`Value::weight`] does.
const MAX_WEIGHT: usize = 2_000_000;

/// Follows the pickle of a zip archive to its STOP opcode.
pub(super) fn scan(program: &[u8]) -> Checked<Graph> {
    scan_within(program, MAX_WEIGHT)
}

fn scan_within(program: &[u8], most: usize) -> Checked<Graph> {
    follow(Machine::new(program, most)).map_err(|(refused, at)| match refused {
        Refused::Cut(what) | Refused::Malformed(what) => {
            Finding::damage("data.pkl", at, format!("the pickle {what}"))
        }
        Refused::TooLarge => too_large(at, most),
    })
}

/// The result of following one pickle of several in a stream.
pub(super) enum Scanned {
    Whole(Graph),
    /// The program ends before the pickle does.
    Cut,
    /// Not a pickle, or one that no writer writes: why, and at which byte of the program.
    Malformed(&'static str, u64),
    TooLarge(Finding),
}

/// Follows the first pickle of a stream; torch < 1.6 wrote five of them, and references of its own form.
pub(super) fn scan_first(program: &[u8]) -> Scanned {
    match follow(Machine { is_legacy: true, ..Machine::new(program, MAX_WEIGHT) }) {
        Ok(graph) => Scanned::Whole(graph),
        Err((Refused::Cut(_), _)) => Scanned::Cut,
        Err((Refused::Malformed(what), at)) => Scanned::Malformed(what, at),
        Err((Refused::TooLarge, at)) => Scanned::TooLarge(too_large(at, MAX_WEIGHT)),
    }
}

fn too_large(at: u64, most: usize) -> Finding {
    let detail = format!("the pickle builds more than {most} values, the limit of this check");
    Finding::of(State::Unknown, "data.pkl", at, detail)
}

/// Follows a program to STOP, or to the byte at which it is refused.
fn follow(mut machine: Machine<'_>) -> Result<Graph, (Refused, u64)> {
    loop {
        let start = machine.at as u64;
        if let Some(root) = machine.step().map_err(|refused| (refused, start))? {
            return Ok(Graph {
                length: machine.at,
                values: machine.values,
                root,
                globals: machine.globals,
                refused_opcodes: machine.refused,
                storages: machine.storages,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::graph::MAX_AXES;
    use super::*;

    #[test]
    fn os_system_is_reported_for_every_opcode_that_names_it() {
        for program in [
            b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.".as_slice(),
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
            b"(S'ls'\nIposix\n", // INT, not INST
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

    /// Few bytes that would take gigabytes: each step repeats a long or large value of the memo.
    #[test]
    fn repetition_counts_towards_the_limit() {
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
