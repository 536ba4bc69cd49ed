//! The TOML file, read with positions so that every fault can name its line.
use super::fault::{Faults, Origin, suggestion};
use super::settings::{Place, SETTINGS, Table};
use super::value::{Given, Raw};
use crate::limits::UPSTREAMS_MAX;
use std::collections::BTreeSet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What the file says, setting by setting.
#[derive(Default)]
pub struct Written {
    pub given: Vec<Given>,
    /// Where each `[[upstream]]` begins; at most `UPSTREAMS_MAX`.
    pub upstreams: Vec<Origin>,
}

/// Everything the file says wrongly is added to `faults`; what can be read is read all the same, so that one run reports all of it.
pub fn read(path: &str, text: &str, faults: &mut Faults) -> Written {
    let mut reader = Reader { path, text, broken_lines: BTreeSet::new(), faults, written: Written::default() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(0, |span| line_of(text, span.start));
        // One slip of the pen makes several errors; the first on a line is the one to read.
        if reader.broken_lines.insert(line) {
            let message = error.message().trim().replace('\n', ", ");
            reader.faults.add(&reader.at(line), "", format!("not TOML: {message}"), "correct the line");
        }
    }
    reader.top(document.get_ref());
    reader.written
}

/// Line number, from 1, of a byte.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

struct Reader<'a> {
    path: &'a str,
    text: &'a str,
    /// Lines that are not TOML: what was recovered from them is a guess and not worth a second fault.
    broken_lines: BTreeSet<usize>,
    faults: &'a mut Faults,
    written: Written,
}

impl Reader<'_> {
    fn at(&self, line: usize) -> Origin {
        Origin::File { path: self.path.to_string(), line }
    }

    fn line<T>(&self, spanned: &Spanned<T>) -> usize {
        line_of(self.text, spanned.span().start)
    }

    fn top(&mut self, document: &DeTable<'_>) {
        for (key, value) in document {
            let line = self.line(key);
            let name = key.get_ref().as_ref();
            let section = Table::ALL.into_iter().find(|table| *table != Table::Top && table.name() == name);
            match (section, value.get_ref()) {
                (None, _) => self.setting(Table::Top, 0, name, key, value),
                (Some(Table::Upstream), DeValue::Array(array)) => {
                    for (index, entry) in array.iter().enumerate() {
                        match entry.get_ref() {
                            DeValue::Table(_) if index >= UPSTREAMS_MAX => {
                                let at = self.at(self.line(entry));
                                let remedy = format!("keep {UPSTREAMS_MAX} at most; several urls may stand for one");
                                self.faults.add(&at, name, format!("{} upstreams are too many", array.len()), remedy);
                                break;
                            }
                            DeValue::Table(table) => {
                                let at = self.at(self.line(entry));
                                self.written.upstreams.push(at);
                                self.table(Table::Upstream, index, table);
                            }
                            _ => self.wrong_section(line, Table::Upstream, ""),
                        }
                    }
                }
                (Some(Table::Upstream), _) => self.wrong_section(line, Table::Upstream, ", in two brackets,"),
                (Some(section), DeValue::Table(table)) => self.table(section, 0, table),
                (Some(section), _) => self.wrong_section(line, section, ""),
            }
        }
    }

    fn wrong_section(&mut self, line: usize, section: Table, how: &str) {
        if !self.broken_lines.contains(&line) {
            let at = self.at(line);
            self.faults.add(
                &at,
                section.name(),
                "wrong type: it is a section",
                format!("write {}{how} on a line of its own and its settings below", section.header()),
            );
        }
    }

    fn table(&mut self, table: Table, upstream: usize, entries: &DeTable<'_>) {
        for (key, value) in entries {
            self.setting(table, upstream, key.get_ref().as_ref(), key, value);
        }
    }

    fn setting<T>(
        &mut self,
        table: Table,
        upstream: usize,
        name: &str,
        key: &Spanned<T>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let line = self.line(key);
        if self.broken_lines.contains(&line) {
            return;
        }
        let origin = self.at(line);
        if let Some(setting) = table.settings().find(|setting| setting.is_called(name)) {
            let place = Place { upstream, key: setting.key };
            // The same setting by its other name: TOML itself refuses a name that comes twice.
            if let (Some(plural), Some(other)) =
                (setting.plural(), self.written.given.iter().find(|given| given.place == place))
            {
                let later = if other.origin.line() > origin.line() { other.origin.clone() } else { origin };
                let reason = format!("both {} and {plural} are given", setting.name);
                self.faults.about(&later, setting, reason, "give one of them only");
                return;
            }
            self.written.given.push(Given { place, origin, raw: raw(value.get_ref()) });
            return;
        }
        let path = if table == Table::Top { name.to_string() } else { format!("{}.{name}", table.name()) };
        let elsewhere = SETTINGS.iter().find(|setting| setting.is_called(name));
        let remedy = match elsewhere.map(|setting| setting.table) {
            Some(Table::Top) => "it belongs at the top of the file, above the first [section]".to_string(),
            Some(other) => format!("it belongs under {}", other.header()),
            None => {
                let sections = Table::ALL.into_iter().map(Table::name);
                let sections = sections.filter(|section| table == Table::Top && !section.is_empty());
                suggestion(name, table.settings().map(|setting| setting.name).chain(sections))
            }
        };
        self.faults.add(&origin, path, "unknown key", remedy);
    }
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) => {
            Raw::Integer(i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok())
        }
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(entries) => {
            Raw::Table(entries.iter().map(|(key, value)| (key.get_ref().to_string(), raw(value.get_ref()))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Key;
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Faults::default();
        read("s.toml", text, &mut faults);
        faults.sorted().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_unknown_key_has_its_line_and_a_suggestion() {
        let found = faults(
            "lisen = \"127.0.0.1:1\"\n\n[hub]\nkeep_alive = \"15s\"\nlisten = \"x\"\n[hubb]\na = 1\n[[upstream]]\nConnectionPoolSize = 5\n",
        );
        assert_eq!(
            found,
            [
                "s.toml:1: lisen: unknown key; did you mean listen?",
                "s.toml:4: hub.keep_alive: unknown key; did you mean keep_alive_interval?",
                "s.toml:5: hub.listen: unknown key; it belongs at the top of the file, above the first [section]",
                "s.toml:6: hubb: unknown key; did you mean hub?",
                "s.toml:9: upstream.ConnectionPoolSize: unknown key; did you mean connection_pool_size?",
            ]
        );
    }

    #[test]
    fn each_upstream_has_its_own_settings_and_places() {
        let text = "[[upstream]]\nurl = \"http://a\"\n\n[[upstream]]\nname = \"b\"\nurls = [\"http://b\", { url = \"x\", weight = 2 }]\n";
        let mut faults = Faults::default();
        let written = read("s.toml", text, &mut faults);
        assert_eq!(faults, Faults::default());
        let places: Vec<_> =
            written.given.iter().map(|given| (given.place.upstream, given.place.key, given.origin.line())).collect();
        assert_eq!(places, [(0, Key::Url, 2), (1, Key::UpstreamName, 5), (1, Key::Url, 6)]);
        assert_eq!(written.upstreams.iter().map(Origin::line).collect::<Vec<_>>(), [1, 4]);
        let table = vec![("url".to_string(), Raw::Text("x".into())), ("weight".to_string(), Raw::Integer(Some(2)))];
        assert_eq!(written.given[2].raw, Raw::List(vec![Raw::Text("http://b".into()), Raw::Table(table)]));
    }

    #[test]
    fn too_many_upstreams_two_names_of_one_setting_and_sections_of_the_wrong_kind_are_refused() {
        let seventeen = "[[upstream]]\nurl = \"http://a\"\n".repeat(17);
        assert_eq!(
            faults(&seventeen),
            ["s.toml:33: upstream: 17 upstreams are too many; keep 16 at most; several urls may stand for one"]
        );
        for (first, second) in [("url", "urls"), ("urls", "url")] {
            let text =
                format!("[[upstream]]\n{first} = \"http://a\"\n{second} = \"http://b\"\n[[upstream]]\nurl = \"x\"\n");
            assert_eq!(faults(&text), ["s.toml:3: upstream.url: both url and urls are given; give one of them only"]);
        }
        assert!(faults("[upstream]\nurl = \"http://a\"\n")[0].starts_with("s.toml:1: upstream: wrong type"));
        for section in ["hub", "limits", "tls", "identity"] {
            assert!(faults(&format!("{section} = 3\n"))[0].contains(&format!("write [{section}]")));
            assert_eq!(faults(&format!("[{section}]\n")), [""; 0]);
        }
        assert!(faults("[hub]\njwks_file = \"x\"\n")[0].ends_with("it belongs under [identity]"));
    }

    #[test]
    fn what_is_not_toml_has_its_line_and_hides_nothing_else() {
        let found = faults(
            "shards = = 2\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"\n[hub]\nkeepalive = 1\nhandshake_timeout = \"15s\n",
        );
        assert!(found[0].starts_with("s.toml:1: not TOML"), "{found:?}");
        assert!(
            found.iter().any(|fault| fault.starts_with("s.toml:3: not TOML") && fault.contains("duplicate key")),
            "{found:?}"
        );
        assert!(found.iter().any(|fault| fault.starts_with("s.toml:5: hub.keepalive: unknown key")), "{found:?}");
        assert!(found.iter().any(|fault| fault.starts_with("s.toml:6: not TOML")), "{found:?}");
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
