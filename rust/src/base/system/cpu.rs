//! The instruction sets of this machine, detected once; `VOXTIER_CPU=baseline` forces the portable paths.

use std::sync::OnceLock;

/// The instruction sets that faster variants of functions are compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// 256-bit integer vectors.
    pub avx2: bool,
    /// Fused multiply-add.
    pub fma: bool,
    /// `pdep` and `tzcnt`: select in one instruction.
    pub bmi2: bool,
}

impl Cpu {
    /// Detects what this machine has and runs fast.
    pub fn detected() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            Self {
                avx2: is_x86_feature_detected!("avx2"),
                fma: is_x86_feature_detected!("fma"),
                bmi2: is_x86_feature_detected!("bmi2") && !has_slow_pdep(),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::default()
    }
}

/// AMD before Zen 3 (family 19h) runs `pdep` as microcode, slower than the portable select.
#[cfg(target_arch = "x86_64")]
fn has_slow_pdep() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let version = std::arch::x86_64::__cpuid(1).eax;
    let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    vendor.ecx.to_le_bytes() == *b"cAMD" && family < 0x19
}

/// The instruction sets to use: those of the machine, or none with `VOXTIER_CPU=baseline` in the environment.
pub fn cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    *CPU.get_or_init(|| match std::env::var_os("VOXTIER_CPU") {
        Some(value) if value == "baseline" => Cpu::default(),
        _ => Cpu::detected(),
    })
}
