//! Closed lists: enums whose members have a stable name (for rows, JSON and Python) and a code of one byte.

/// Declares an enum whose members have a stable name and a stable one-byte code, their order.
macro_rules! closed_list {
    ($(#[$outer:meta])* pub enum $list:ident { $($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $list { $($(#[$doc])* $variant),+ }

        impl $list {
            /// Every member, in the order of its code.
            pub const ALL: &'static [$list] = &[$($list::$variant),+];

            /// The stable `snake_case` name.
            pub const fn name(self) -> &'static str {
                match self { $($list::$variant => $name),+ }
            }

            /// The member of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|member| member.name() == name)
            }

            /// The member of that code.
            pub fn from_code(code: u8) -> Option<Self> {
                Self::ALL.get(usize::from(code)).copied()
            }
        }

        impl std::fmt::Display for $list {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(crate) use closed_list;
