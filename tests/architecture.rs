//! The house of docs/architecture.md, kept by a test: imports point one way, between rooms, between the wings of the engine
//! and between files. It reads the source, so it also sees what no build of these features compiles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::LazyLock,
};
use syn::{
    Attribute, ImplItemFn, Item, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

/// The rooms, from the ground up. A room imports only from floors below its own.
const ROOMS: [&[&str]; 7] = [
    &["accessors", "decision", "error", "log_limit", "rejection", "time", "varint"],
    &["store"],
    &["cache"],
    &["lock", "name"],
    &["body"],
    &["answer"],
    &["barrier", "stampede", "throttle"],
];

/// The wings of the engine, in the same way.
const WINGS: [&[&str]; 9] = [
    &["os"],
    &["record"],
    &["directory", "lmdb"],
    &["commit"],
    &["entries", "events", "peers", "rows"],
    &["singleflight"],
    &["shared"],
    &["closing", "housekeeping"],
    &["open"],
];

/// Source files that a folder may hold, tests aside.
const FOLDER_MAX: usize = 16;

#[test]
fn imports_point_one_way_and_no_folder_is_crowded() {
    let violations = violations(&HOUSE);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// Each plants one fault into a copy of the real source.
mod planted {
    use super::*;

    /// Adds lines to a file, or makes it of them.
    fn with(changes: &[(&str, &str)]) -> Vec<String> {
        let mut house = HOUSE.clone();
        for (file, lines) in changes {
            let text = fs::read_to_string(Path::new(SRC).join(file)).unwrap_or_default();
            house.insert(file.to_string(), Reading::of(file, &(text + lines)));
        }
        violations(&house)
    }

    fn assert_one(violations: &[String], parts: &[&str]) {
        let [violation] = violations else { panic!("one fault was planted, these were found: {violations:#?}") };
        assert!(parts.iter().all(|part| violation.contains(part)), "{violation}");
    }

    #[test]
    fn a_room_that_imports_from_a_higher_floor() {
        let found = with(&[("store/os/fork.rs", "use crate::time::Clock;\nuse crate::cache::Cache;\n")]);
        assert_one(&found, &["store/os/fork.rs", "cache/cache.rs", "`store` stands below `cache`"]);
    }

    #[test]
    fn a_path_in_the_middle_of_a_function() {
        let found = with(&[("error.rs", "fn planted() { let _ = crate::throttle::Rate::per_second(1); }\n")]);
        assert_one(&found, &["error.rs", "throttle/limit/rate.rs", "`error` stands below `throttle`"]);
    }

    #[test]
    fn two_rooms_of_one_floor() {
        let found = with(&[("throttle/turn.rs", "use crate::stampede::StampedeCacheLayer;\n")]);
        assert_one(&found, &["throttle/turn.rs", "stampede/layer.rs", "one floor"]);
    }

    #[test]
    fn a_wing_that_imports_from_a_higher_one() {
        let found = with(&[("store/record/key.rs", "use crate::store::{rows::tables::LOCKS};\n")]);
        assert_one(&found, &["store/record/key.rs", "store/rows/tables.rs", "`record` stands below `rows`"]);
    }

    #[test]
    fn two_files_that_import_each_other() {
        let found = with(&[("store/rows/tables.rs", "mod planted { use super::super::room::Room; }\n")]);
        assert_one(&found, &["circle", "store/rows/room.rs", "store/rows/tables.rs"]);
    }

    #[test]
    fn a_circle_of_three() {
        let found = with(&[("store/rows/tables.rs", "use super::update::Update;\n")]);
        assert_one(&found, &["circle", "store/rows/tables.rs", "store/rows/update.rs"]);
    }

    #[test]
    fn a_file_that_imports_through_the_module_it_stands_in() {
        let found = with(&[("cache/values.rs", "use super::Averager;\n")]);
        assert_one(&found, &["cache/values.rs", "cache/mod.rs", "its own file"]);
        let found = with(&[("stampede/layer.rs", "use crate::Cache;\n")]);
        assert_one(&found, &["stampede/layer.rs", "lib.rs", "its own file"]);
    }

    #[test]
    fn a_module_page_with_code() {
        assert_one(&with(&[("lock/mod.rs", "struct Planted;\n")]), &["lock/mod.rs", "documents"]);
    }

    #[test]
    fn a_crowded_folder() {
        let files: Vec<String> = (0..FOLDER_MAX).map(|n| format!("name/planted_{n}.rs")).collect();
        let found = with(&files.iter().map(|file| (file.as_str(), "")).collect::<Vec<_>>());
        assert_one(&found, &["name", "16"]);
    }

    #[test]
    fn lmdb_above_the_engine_and_http_within() {
        assert_one(&with(&[("cache/values.rs", "use heed::Env;\n")]), &["cache/values.rs", "`heed`"]);
        assert_one(&with(&[("store/shared.rs", "use http::Request;\n")]), &["store/shared.rs", "`http`"]);
        assert_one(&with(&[("store/shared.rs", "fn planted<T: tower::Service<()>>() {}\n")]), &["`tower`"]);
    }

    #[test]
    fn a_room_that_nobody_has_drawn() {
        assert_one(&with(&[("attic.rs", "")]), &["attic", "no floor"]);
        assert_one(&with(&[("store/attic.rs", "")]), &["attic", "no floor"]);
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let lines = "#[cfg(test)]\nmod tests { use crate::throttle::Rate; }\n#[cfg(test)]\nuse crate::cache::Cache;\n";
        assert_eq!(
            with(&[("error.rs", lines), ("store/os/tests.rs", "use crate::cache::Cache;\n")]),
            Vec::<String>::new()
        );
    }
}

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// What all source files name, tests aside, by their path below `src`.
static HOUSE: LazyLock<BTreeMap<String, Reading>> = LazyLock::new(|| {
    fn read(folder: &Path, below: &str, house: &mut BTreeMap<String, Reading>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = below.to_owned() + &entry.file_name().into_string().unwrap();
            if entry.path().is_dir() {
                read(&entry.path(), &(name + "/"), house);
            } else if name.ends_with(".rs") && !is_test(&name) {
                let reading = Reading::of(&name, &fs::read_to_string(entry.path()).unwrap());
                house.insert(name, reading);
            }
        }
    }
    let mut house = BTreeMap::new();
    read(Path::new(SRC), "", &mut house);
    house
});

/// What is wrong with the house, one line each.
fn violations(house: &BTreeMap<String, Reading>) -> Vec<String> {
    let house: BTreeMap<&str, &Reading> =
        house.iter().filter(|(file, _)| !is_test(file)).map(|(file, reading)| (file.as_str(), reading)).collect();
    let modules = Modules::of(&house);
    let mut violations = Vec::new();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (&file, reading) in &house {
        violations.extend(check_place(file, reading));
        let paths: BTreeSet<_> = reading.paths.iter().map(|(module, path)| modules.rooted(module, path)).collect();
        for path in paths {
            if let Some(external) = path.strip_prefix("::") {
                violations.extend(check_external(file, external));
                continue;
            }
            let Some(target) = modules.file_of(&path, file, &mut violations) else { continue };
            // A page of a module only declares and re-exports.
            if target != file && !is_module_page(file) {
                imports.entry(file).or_default().insert(target);
            }
        }
    }
    for (file, target) in imports.iter().flat_map(|(file, targets)| targets.iter().map(move |target| (*file, *target)))
    {
        violations.extend(check_floors(&ROOMS, file, target, ""));
        violations.extend(check_floors(&WINGS, file, target, "store/"));
    }
    if violations.is_empty() {
        violations.extend(circle(&imports));
    }
    violations.extend(crowded(house.keys()));
    violations.sort();
    violations.dedup();
    violations
}

fn check_place(file: &str, reading: &Reading) -> Vec<String> {
    let mut violations = Vec::new();
    for (floors, below) in [(&ROOMS[..], ""), (&WINGS[..], "store/")] {
        if let Some(name) = part(file, below).filter(|name| !floors.iter().any(|floor| floor.contains(name))) {
            violations.push(format!("{below}{name} has no floor: give it one in this test and in the documents"));
        }
    }
    if file != "lib.rs" && is_module_page(file) && !reading.only_declares {
        violations.push(format!("{file} holds more than documents, `mod` and `use` lines"));
    }
    violations
}

fn check_external(file: &str, name: &str) -> Option<String> {
    let in_store = file.starts_with("store/");
    match name {
        "heed" if !file.starts_with("store/lmdb/") => Some(format!("{file} names `heed`: only store/lmdb knows LMDB")),
        "http" | "http_body" | "tower" | "tower_service" | "axum" | "tonic" if in_store => {
            Some(format!("{file} names `{name}`: the engine knows no HTTP, no tower and no layer"))
        }
        _ => None,
    }
}

/// The part of a file's path that names its room or wing.
fn part<'a>(file: &'a str, below: &str) -> Option<&'a str> {
    let rest = file.strip_prefix(below)?;
    let name = rest.split_once('/').map_or_else(|| rest.trim_end_matches(".rs"), |(folder, _)| folder);
    Some(name).filter(|name| !matches!(*name, "lib" | "mod"))
}

fn check_floors(floors: &[&[&str]], file: &str, target: &str, below: &str) -> Option<String> {
    let (from, to) = (part(file, below)?, part(target, below)?);
    let floor = |name| floors.iter().position(|floor| floor.contains(&name));
    // What has no floor is told of by itself.
    let (own, other) = (floor(from)?, floor(to)?);
    if from == to || own > other || (own == 0 && other == 0 && below.is_empty()) {
        return None;
    }
    let why = if own == other { "are on one floor" } else { "" };
    Some(match why {
        "" => format!("{file} imports {target}: `{from}` stands below `{to}`"),
        _ => format!("{file} imports {target}: `{from}` and `{to}` {why}"),
    })
}

/// The files of a circle of imports, if there is one.
fn circle(imports: &BTreeMap<&str, BTreeSet<&str>>) -> Option<String> {
    fn reaches<'a>(
        imports: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        from: &'a str,
        to: &str,
        seen: &mut BTreeSet<&'a str>,
        way: &mut Vec<&'a str>,
    ) -> bool {
        way.push(from);
        for target in imports.get(from).into_iter().flatten() {
            if *target == to || (seen.insert(target) && reaches(imports, target, to, seen, way)) {
                return true;
            }
        }
        way.pop();
        false
    }
    imports.keys().find_map(|file| {
        let mut way = Vec::new();
        reaches(imports, file, file, &mut BTreeSet::new(), &mut way)
            .then(|| format!("a circle of imports: {} -> {file}", way.join(" -> ")))
    })
}

fn crowded<'a>(files: impl Iterator<Item = &'a &'a str>) -> Vec<String> {
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for file in files {
        *folders.entry(file.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default() += 1;
    }
    let crowded = folders.into_iter().filter(|(_, files)| *files > FOLDER_MAX);
    crowded.map(|(folder, files)| format!("src/{folder} holds {files} source files, at most {FOLDER_MAX} do")).collect()
}

fn is_test(file: &str) -> bool {
    file.ends_with("tests.rs") || file.contains("/tests/") || file.ends_with("/testing.rs")
}

fn is_module_page(file: &str) -> bool {
    file == "lib.rs" || file.ends_with("/mod.rs")
}

fn is_declaration(item: &Item) -> bool {
    matches!(item, Item::Use(_)) || matches!(item, Item::Mod(module) if module.content.is_none())
}

/// `a::b` of `a/b.rs` and of `a/b/mod.rs`; empty for the crate itself.
fn module_of(file: &str) -> String {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { String::new() } else { path.replace('/', "::") }
}

#[derive(Default)]
struct Modules<'a> {
    /// The file of each module.
    files: BTreeMap<String, &'a str>,
    /// What modules re-export, by its path there.
    exports: BTreeMap<String, String>,
}

impl<'a> Modules<'a> {
    fn of(house: &BTreeMap<&'a str, &Reading>) -> Modules<'a> {
        let mut modules = Modules::default();
        modules.files.extend(house.keys().map(|file| (module_of(file), *file)));
        for (file, reading) in house {
            let module = module_of(file);
            let exports = reading.exports.iter();
            let exports: Vec<_> =
                exports.map(|(name, path)| (format!("{module}::{name}"), modules.rooted(&module, path))).collect();
            modules.exports.extend(exports);
        }
        modules
    }

    /// A path as a module names it, from the crate's root; `::name` of another crate.
    fn rooted(&self, module: &str, path: &[String]) -> String {
        let mut base: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
        let mut rest = path.iter().map(String::as_str).peekable();
        let first = rest.peek().copied().unwrap_or_default();
        match first {
            "crate" => {
                rest.next();
                base.clear();
            }
            "self" => drop(rest.next()),
            "super" => {
                while rest.next_if_eq(&"super").is_some() {
                    base.pop();
                }
            }
            _ if !self.files.contains_key(&join(&base, first)) => return format!("::{first}"),
            _ => {}
        }
        base.extend(rest);
        base.join("::")
    }

    /// The file in which what a path names is defined.
    fn file_of(&self, path: &str, from: &str, violations: &mut Vec<String>) -> Option<&'a str> {
        let mut path = path.to_owned();
        loop {
            let mut module = path.as_str();
            while !self.files.contains_key(module) {
                module = module.rsplit_once("::").map_or("", |(module, _)| module);
            }
            let file = self.files[module];
            let name = path[module.len()..].trim_start_matches("::").split("::").next().unwrap_or_default();
            if !is_module_page(file) || name.is_empty() {
                return Some(file);
            }
            let stands_in =
                module.is_empty() || module_of(from) == module || module_of(from).starts_with(&format!("{module}::"));
            if stands_in && !is_module_page(from) {
                violations.push(format!(
                    "{from} imports `{name}` through {file}, in which it stands: import it from its own file"
                ));
                return None;
            }
            match self.exports.get(&format!("{module}::{name}")) {
                Some(exported) if *exported != path && !exported.starts_with("::") => path = exported.clone(),
                _ => return Some(file),
            }
        }
    }
}

fn join(base: &[&str], name: &str) -> String {
    base.iter().copied().chain([name]).collect::<Vec<_>>().join("::")
}

/// What one file names.
#[derive(Clone)]
struct Reading {
    module: String,
    /// With the module that names them, which may be one within the file.
    paths: Vec<(String, Vec<String>)>,
    /// What it re-exports, and under which name.
    exports: Vec<(String, Vec<String>)>,
    /// Nothing but `mod` and `use` lines.
    only_declares: bool,
}

impl Reading {
    fn of(file: &str, text: &str) -> Reading {
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let only_declares = syntax.items.iter().all(is_declaration);
        let mut reading = Reading { module: module_of(file), paths: Vec::new(), exports: Vec::new(), only_declares };
        reading.visit_file(&syntax);
        reading
    }

    fn note(&mut self, path: Vec<String>) {
        self.paths.push((self.module.clone(), path));
    }

    fn leaves(tree: &UseTree, before: &[String], leaves: &mut Vec<(String, Vec<String>)>) {
        let with = |ident: &syn::Ident| before.iter().cloned().chain([ident.to_string()]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => Reading::leaves(&path.tree, &with(&path.ident), leaves),
            UseTree::Group(group) => group.items.iter().for_each(|tree| Reading::leaves(tree, before, leaves)),
            UseTree::Name(name) if name.ident == "self" => {
                leaves.push((before.last().cloned().unwrap_or_default(), before.to_vec()));
            }
            UseTree::Name(name) => leaves.push((name.ident.to_string(), with(&name.ident))),
            UseTree::Rename(rename) => leaves.push((rename.rename.to_string(), with(&rename.ident))),
            UseTree::Glob(_) => leaves.push(("*".to_owned(), before.to_vec())),
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string().starts_with("test"),
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Reading {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => &[],
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let outer = self.module.clone();
        self.module =
            join(&outer.split("::").filter(|part| !part.is_empty()).collect::<Vec<_>>(), &module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module = outer;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut leaves = Vec::new();
        Reading::leaves(&item.tree, &[], &mut leaves);
        for (name, path) in leaves {
            if !matches!(item.vis, syn::Visibility::Inherited) {
                self.exports.push((name, path.clone()));
            }
            self.note(path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if names.len() > 1 {
            self.note(names);
        }
        visit::visit_path(self, path);
    }
}
