//! The figures as tables.

use comfy_table::{Table, presets};

use crate::monitor::Figures;
use crate::promise::Promises;

/// Each monitor's fastest boot, a line each.
pub fn table(figures: &[&Figures]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["monitor", "exec to init, ms", "beyond guest, KiB", "exits", "nested page faults"]);
    for figures in figures {
        let boot = &figures.fastest;
        table.add_row([
            figures.monitor.to_owned(),
            format!("{:.1}", boot.exec_to_init_ms),
            boot.beyond_guest_kib.to_string(),
            boot.kvm.exits.to_string(),
            boot.kvm.nested_faults.to_string(),
        ]);
    }
    table
}

/// Each promise, what was measured, and whether it is kept.
pub fn promises(promises: &Promises) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["promise", "measured", "kept"]);
    for promise in &promises.0 {
        table.add_row([promise.text.as_str(), &promise.measured, if promise.kept { "yes" } else { "NO" }]);
    }
    table
}
