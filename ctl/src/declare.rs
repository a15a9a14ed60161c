//! Tables are declared once: a struct per table, whose fields carry unit and meaning, so that a column and its values
//! cannot come apart.

use serde::Serialize;
pub use serde_json::Value;

use crate::protocol::{Column, Table, Unit};

/// A row of a declared table; [`rows!`](crate::rows) makes them.
pub trait Row {
    /// What the columns are.
    fn columns() -> Vec<Column>;

    /// One value per column, null for what is unknown.
    fn into_values(self) -> Vec<Value>;
}

/// A row of a table of its own.
pub trait NamedRow: Row {
    /// Stable name of the table.
    const NAME: &'static str;
    /// What it shows.
    const HELP: &'static str;
}

impl Table {
    /// A table of declared rows.
    pub fn of<R: NamedRow>(rows: impl IntoIterator<Item = R>) -> Self {
        Self::with(R::NAME, R::HELP, rows)
    }

    /// Adds a declared row, of the table's kind.
    pub fn add<R: NamedRow>(&mut self, row: R) {
        self.push(row.into_values());
    }

    /// The same for rows that several tables have.
    pub fn with<R: Row>(name: &str, help: &str, rows: impl IntoIterator<Item = R>) -> Self {
        let mut table = Self { name: name.into(), help: help.into(), columns: R::columns(), rows: Vec::new() };
        rows.into_iter().for_each(|row| table.push(row.into_values()));
        table
    }
}

/// Two rows side by side: columns that only one table has, and those that it shares with others.
impl<A: Row, B: Row> Row for (A, B) {
    fn columns() -> Vec<Column> {
        [A::columns(), B::columns()].concat()
    }

    fn into_values(self) -> Vec<Value> {
        [self.0.into_values(), self.1.into_values()].concat()
    }
}

/// A column, for [`rows!`](crate::rows).
#[must_use]
pub fn column(name: &str, unit: Unit, help: &str) -> Column {
    Column { name: name.into(), unit, help: help.trim().into() }
}

/// A value, for [`rows!`](crate::rows). What cannot be written as JSON is unknown.
pub fn value(field: impl Serialize) -> Value {
    serde_json::to_value(field).unwrap_or(Value::Null)
}

/// Declares the rows of a table: the comment of each field is the meaning of its column, followed by unit and type.
///
/// ```
/// sockeye_ctl::rows! {
///     /// Things that are there.
///     struct Thing: "things" {
///         /// what it is called
///         name: Text = String,
///         /// how long it has been there
///         age: Seconds = Option<u64>,
///     }
/// }
/// let table = sockeye_ctl::Table::of([Thing { name: "a".into(), age: None }]);
/// assert_eq!((table.name.as_str(), table.columns[1].help.as_str()), ("things", "how long it has been there"));
/// ```
#[macro_export]
macro_rules! rows {
    (#[doc = $help:literal] struct $row:ident: $name:literal { $($fields:tt)* }) => {
        $crate::rows! { #[doc = $help] struct $row { $($fields)* } }

        impl $crate::declare::NamedRow for $row {
            const NAME: &'static str = $name;
            const HELP: &'static str = $help.trim_ascii();
        }
    };
    (
        #[doc = $help:literal]
        struct $row:ident { $(#[doc = $meaning:literal] $field:ident: $unit:ident = $type:ty,)* }
    ) => {
        #[doc = $help]
        pub(crate) struct $row {
            $(#[doc = $meaning] pub(crate) $field: $type,)*
        }

        impl $crate::declare::Row for $row {
            fn columns() -> Vec<$crate::Column> {
                vec![$($crate::declare::column(stringify!($field), $crate::Unit::$unit, $meaning)),*]
            }

            fn into_values(self) -> Vec<$crate::declare::Value> {
                vec![$($crate::declare::value(self.$field)),*]
            }
        }
    };
}
