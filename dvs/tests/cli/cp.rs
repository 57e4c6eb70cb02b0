//! `cp`: files between two nodes, whole, sparse, cut short and refused.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

const MIB: u64 = 1 << 20;

/// Bytes of which no two blocks are the same.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut word = seed | 1;
    let words = std::iter::repeat_with(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (word >> 32) as u32
    });
    words.take(len.div_ceil(4)).flat_map(u32::to_le_bytes).take(len).collect()
}

fn at(node: &str, path: &Path) -> OsString {
    let mut text = OsString::from(format!("{node}:"));
    text.push(path);
    text
}

/// From the first to the second, bound on node 1.
fn command_of(cluster: &Cluster, args: &[&str], from: &OsStr, to: &OsStr) -> Command {
    let mut command = cluster.command(&["cp", "--dc", "main", "--node", "1", "--json"]);
    command.args(args).arg(from).arg(to);
    command
}

fn cp(cluster: &Cluster, args: &[&str], from: &OsStr, to: &OsStr) -> Ran {
    finish(command_of(cluster, args, from, to).spawn().unwrap())
}

fn number(said: &Value, key: &str) -> u64 {
    said[key].as_u64().unwrap_or_else(|| panic!("{key} in {said}"))
}

/// A name, its kind and permissions, its time, its contents.
type Shape = (OsString, u32, (i64, i64), Vec<u8>);

/// What a path holds, in the order of the names.
fn shape(path: &Path, into: &mut Vec<Shape>) {
    let found = std::fs::symlink_metadata(path).unwrap();
    let name = path.file_name().unwrap().to_owned();
    let time = (found.mtime(), found.mtime_nsec());
    if found.is_symlink() {
        let to = std::fs::read_link(path).unwrap();
        into.push((name, 0, (0, 0), to.as_os_str().as_bytes().to_vec()));
    } else if found.is_dir() {
        into.push((name, found.mode(), time, Vec::new()));
        let mut below: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        below.sort();
        below.iter().for_each(|path| shape(path, into));
    } else {
        into.push((name, found.mode(), time, std::fs::read(path).unwrap()));
    }
}

/// Everything below a folder, its own name apart.
fn shape_of(path: &Path) -> Vec<Shape> {
    let mut all = Vec::new();
    shape(path, &mut all);
    all[0].0 = OsString::new();
    all
}

/// Folders, files that are empty, sparse and large, names that are no text, links that lead away.
fn plant(root: &Path) {
    std::fs::create_dir_all(root.join("sub/deep")).unwrap();
    std::fs::write(root.join("empty"), "").unwrap();
    std::fs::write(root.join("large"), bytes(64 * MIB as usize + 5, 7)).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"sub/no\xfftext\n")), "odd").unwrap();
    std::fs::write(root.join("sub").join("n".repeat(255)), "long").unwrap();
    symlink("/etc", root.join("sub/out")).unwrap();
    symlink("nowhere", root.join("sub/deep/dangling")).unwrap();
    let sparse = std::fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 100 * MIB).unwrap();
    sparse.set_len(200 * MIB).unwrap();
    let private = root.join("sub/private");
    std::fs::write(&private, "secret").unwrap();
    std::fs::set_permissions(private, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(root.join("sub/deep"), PermissionsExt::from_mode(0o550)).unwrap();
}

#[test]
fn a_file_gets_its_name_or_another_in_both_directions() {
    let cluster = Cluster::up(2);
    let (file, folder) = (cluster.path("file"), cluster.path("folder"));
    let whole = bytes(3 * MIB as usize + 1, 1);
    std::fs::write(&file, &whole).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let said = cp(&cluster, &[], file.as_os_str(), &at("2", &folder)).fine().json();
    assert_eq!((number(&said, "files"), number(&said, "carried_bytes")), (1, whole.len() as u64), "{said}");
    assert_eq!(std::fs::read(folder.join("file")).unwrap(), whole);
    let back = cluster.path("back");
    cp(&cluster, &[], &at("ada2", &folder.join("file")), back.as_os_str()).fine();
    assert_eq!(std::fs::read(&back).unwrap(), whole);
    // What stood there goes at once, and nothing is left beside it.
    std::fs::write(&file, "short").unwrap();
    cp(&cluster, &[], file.as_os_str(), &at("2", &folder.join("file"))).fine();
    assert_eq!(shape_of(&folder).len(), 2);
    assert_eq!(std::fs::read(folder.join("file")).unwrap(), b"short");
    let shown =
        cluster.command(&["cp", "--dc", "main", "--node", "1"]).arg(&file).arg(at("2", &back)).spawn();
    let shown = finish(shown.unwrap()).fine();
    assert!(shown.out.starts_with("1 file, 5 B; 5 B carried in ") && shown.err.is_empty(), "{}", shown.out);
}

#[test]
fn a_tree_arrives_as_it_is_in_both_directions_and_is_not_carried_twice() {
    let cluster = Cluster::up(2);
    let (tree, far, near) = (cluster.path("tree"), cluster.path("far"), cluster.path("near"));
    plant(&tree);
    let said = cp(&cluster, &["-r"], tree.as_os_str(), &at("2", &far)).fine().json();
    let counted = ["files", "folders", "links"].map(|key| number(&said, key));
    assert_eq!(counted, [6, 3, 2], "{said}");
    assert!(number(&said, "carried_bytes") < 66 * MIB && number(&said, "bytes") > 264 * MIB, "{said}");
    assert_eq!(shape_of(&tree), shape_of(&far));
    cp(&cluster, &["-r"], &at("2", &far), near.as_os_str()).fine();
    assert_eq!(shape_of(&tree), shape_of(&near));
    for path in [&far, &near] {
        let blocks = std::fs::metadata(path.join("sparse")).unwrap().blocks();
        assert!(blocks * 512 <= MIB, "{blocks} blocks of a sparse file");
    }
    let again = cp(&cluster, &["-r"], tree.as_os_str(), &at("2", &far)).fine().json();
    assert_eq!((number(&again, "carried_bytes"), number(&again, "unchanged")), (0, 6), "{again}");
    // As old and as long, with one byte that is another: the digests tell.
    let large = far.join("large");
    let time = std::fs::metadata(&large).unwrap().modified().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&large).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"!", 5 * MIB).unwrap();
    file.set_modified(time).unwrap();
    let mended = cp(&cluster, &["-r"], tree.as_os_str(), &at("2", &far)).fine().json();
    assert_eq!(number(&mended, "unchanged"), 5, "{mended}");
    assert_eq!(shape_of(&tree), shape_of(&far));
    // A folder into a folder, under its own name.
    std::fs::create_dir(cluster.path("into")).unwrap();
    let mut into = at("2", &cluster.path("into"));
    into.push("/");
    cp(&cluster, &["-r"], tree.join("sub").as_os_str(), &into).fine();
    assert_eq!(shape_of(&tree.join("sub")), shape_of(&cluster.path("into/sub")));
    // Others' folders must go with this test.
    for path in ["tree/sub/deep", "far/sub/deep", "near/sub/deep", "into/sub/deep"] {
        std::fs::set_permissions(cluster.path(path), PermissionsExt::from_mode(0o750)).unwrap();
    }
}

/// Cuts a copy when a part of it is there; `false`: it was faster.
fn cut(cluster: &Cluster, from: &OsStr, to: &OsStr, partial: &Path, signal: &str) -> bool {
    let mut child = command_of(cluster, &[], from, to).spawn().unwrap();
    let begun = || std::fs::metadata(partial).is_ok_and(|found| found.len() > 16 * MIB);
    let bound = Instant::now() + BOUND;
    while !begun() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < bound, "nothing arrives");
        std::thread::yield_now();
    }
    let told = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(told.is_ok());
    let ran = finish(child);
    if ran.code() == 0 {
        return false;
    }
    if signal == "-INT" {
        assert_eq!(
            (ran.code(), ran.json()["next"].clone()),
            (130, "run the same command again: what has arrived is kept".into())
        );
    }
    assert!(partial.exists(), "{}", ran.err);
    true
}

fn goes_on(fetch: bool, signal: &str) {
    let cluster = Cluster::up(2);
    let (file, copy) = (cluster.path("file"), cluster.path("copy"));
    let partial = cluster.path(".copy.dvs-part");
    let len = 256 * MIB;
    std::fs::write(&file, bytes(len as usize, 3)).unwrap();
    let (from, to) =
        if fetch { (at("2", &file), copy.clone().into()) } else { (file.clone().into(), at("2", &copy)) };
    while !cut(&cluster, &from, &to, &partial, signal) {
        std::fs::remove_file(&copy).unwrap();
    }
    assert!(!copy.exists());
    // One block of what arrived is spoilt: it is carried again, and only it.
    let spoilt = std::fs::OpenOptions::new().write(true).open(&partial).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&spoilt, b"spoilt", 2 * MIB).unwrap();
    let had = spoilt.metadata().unwrap().len() / MIB;
    let said = cp(&cluster, &[], &from, &to).fine().json();
    let (carried, resumed) = (number(&said, "carried_bytes"), number(&said, "resumed_bytes"));
    assert_eq!((carried + resumed, resumed), (len, (had - 1) * MIB), "{said}");
    assert!(resumed >= 15 * MIB && !partial.exists(), "{said}");
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&copy).unwrap(), "another file arrived");
}

#[test]
fn a_copy_to_another_node_that_was_killed_goes_on_with_the_rest() {
    goes_on(false, "-KILL");
}

#[test]
fn a_copy_from_another_node_that_was_interrupted_goes_on_with_the_rest() {
    goes_on(true, "-INT");
}

#[test]
fn a_partial_file_that_is_longer_or_holds_something_else_is_of_no_harm() {
    let cluster = Cluster::up(2);
    let (file, copy) = (cluster.path("file"), cluster.path("copy"));
    let sparse = std::fs::File::create(&file).unwrap();
    sparse.set_len(5 * MIB + 1).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 3 * MIB).unwrap();
    std::fs::write(cluster.path(".copy.dvs-part"), bytes(9 * MIB as usize, 5)).unwrap();
    let said = cp(&cluster, &[], file.as_os_str(), &at("2", &copy)).fine().json();
    assert_eq!(number(&said, "resumed_bytes"), 0, "{said}");
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&copy).unwrap());
    assert!(std::fs::metadata(&copy).unwrap().blocks() * 512 <= 2 * MIB);
    // A link in its place would be written through.
    symlink(cluster.path("elsewhere"), cluster.path(".other.dvs-part")).unwrap();
    let ran = cp(&cluster, &[], file.as_os_str(), &at("2", &cluster.path("other")));
    assert_eq!(ran.code(), 1, "{}", ran.out);
    assert!(!cluster.path("elsewhere").exists());
}

/// As people see it.
fn said(cluster: &Cluster, args: &[&str]) -> Ran {
    cluster.dvs(&[&["cp", "--dc", "main", "--node", "1"], args].concat())
}

#[test]
fn wrong_uses_are_named_before_anything_is_written() {
    let cluster = Cluster::up(2);
    let path = |name: &str| cluster.path(name).to_str().unwrap().to_owned();
    let (file, tree) = (path("file"), path("tree"));
    std::fs::write(&file, "x").unwrap();
    std::fs::create_dir(&tree).unwrap();
    let to = format!("2:{}", path("copy"));
    let line = |ran: Ran, code: i32, what: &str, next: &str| {
        assert_eq!((ran.code(), &*ran.err), (code, &*format!("dvs: {what}\n  next: {next}\n")));
    };
    let check = "check the path; the folder that is to have it must exist";
    let both = "give one of them as NODE:PATH, the other as a path of this node, such as ./name";
    line(said(&cluster, &[&file, "/tmp/x"]), 3, "neither SRC nor DST is on another node", both);
    line(said(&cluster, &[&to, &to]), 3, "both SRC and DST are on another node", both);
    line(
        said(&cluster, &[&file, "7:/x"]),
        3,
        "cluster test has no node \"7\"",
        "use one of 1 (ada1), 2 (ada2)",
    );
    let missing = "cannot be found: No such file or directory (os error 2)";
    line(said(&cluster, &["/no/such", &to]), 3, &format!("/no/such {missing}"), check);
    line(said(&cluster, &["2:/no/such", &file]), 3, &format!("on node ada2: /no/such {missing}"), check);
    line(said(&cluster, &[&file, "2:/no/such/x"]), 3, &format!("on node ada2: /no/such {missing}"), check);
    let r = "give -r to copy it with all that is in it";
    line(said(&cluster, &[&tree, &to]), 3, "tree is a folder", r);
    line(said(&cluster, &[&format!("2:{tree}"), &path("x")]), 3, "tree is a folder", r);
    line(
        said(&cluster, &["-r", &tree, &format!("2:{file}")]),
        3,
        &format!("on node ada2: {file} is a file, and a folder is to get its place"),
        "remove it, or name another target",
    );
    said(&cluster, &[&file, "2:/proc/x"]).refused(1, &["on node ada2: /proc/x cannot be written"]);
    // One such in a tree, and nothing of it is copied.
    let _socket = std::os::unix::net::UnixListener::bind(cluster.path("tree/socket")).unwrap();
    line(
        said(&cluster, &["-r", &tree, &to]),
        3,
        "tree/socket is a socket: files, folders and symbolic links are copied",
        "leave it out: copy what is beside it",
    );
    said(&cluster, &["/dev/null", &to]).refused(3, &["null is a device"]);
    assert!(!cluster.path("copy").exists());
    assert_eq!(said(&cluster, &[&file]).code(), 2);
    assert_eq!(said(&cluster, &["--serve", "/", &file]).code(), 2);
    cluster.kill("ada2");
    until("the daemon's end", || cluster.dvs(&["status", "--node", "2"]).code() == 4);
    said(&cluster, &[&file, &to]).refused(4, &["node ada2 does not answer", "dvs up"]);
}

#[test]
fn what_a_link_in_the_target_leads_to_is_never_written() {
    let cluster = Cluster::up(2);
    for folder in ["tree/sub", "far", "outside"] {
        std::fs::create_dir_all(cluster.path(folder)).unwrap();
    }
    std::fs::write(cluster.path("tree/sub/file"), "x").unwrap();
    symlink(cluster.path("outside"), cluster.path("far/sub")).unwrap();
    let ran = cp(&cluster, &["-r"], cluster.path("tree").as_os_str(), &at("2", &cluster.path("far")));
    let error = ran.json()["error"].as_str().unwrap().to_owned();
    assert!(
        ran.code() == 3 && error.ends_with("far/sub is a symbolic link, and a folder is to get its place"),
        "{error}"
    );
    assert!(std::fs::read_dir(cluster.path("outside")).unwrap().next().is_none());
    // As the last name it is replaced, not followed.
    std::fs::write(cluster.path("outside/kept"), "kept").unwrap();
    symlink(cluster.path("outside/kept"), cluster.path("far/link")).unwrap();
    cp(&cluster, &[], cluster.path("tree/sub/file").as_os_str(), &at("2", &cluster.path("far/link"))).fine();
    assert_eq!(std::fs::read(cluster.path("outside/kept")).unwrap(), b"kept");
    assert_eq!(std::fs::read(cluster.path("far/link")).unwrap(), b"x");
}

#[test]
fn a_served_folder_is_read_and_written_and_nothing_beside_it() {
    let cluster = Cluster::up(2);
    let folder = cluster.path("served");
    std::fs::create_dir_all(folder.join("in")).unwrap();
    std::fs::write(folder.join("in/file"), "served").unwrap();
    std::fs::write(cluster.path("beside"), "secret").unwrap();
    symlink("..", folder.join("up")).unwrap();
    let near = cluster.path("near").to_str().unwrap().to_owned();
    let via = ["--via", "cp-2"];
    let refused = said(&cluster, &[&via[..], &["2:in/file", &near]].concat());
    refused.refused(
        5,
        &[
            "nobody serves the files of node ada2 in DC main as cp-2",
            "run `dvs cp --dc main --node ada2 --serve FOLDER --name cp-2` there",
        ],
    );
    let serve = ["cp", "--dc", "main", "--node", "2", "--serve", folder.to_str().unwrap()];
    let server = cluster.command(&serve).spawn().unwrap();
    until("the server", || {
        !cluster.dvs(&["ps", "--json"]).fine().json()["endpoints"].as_array().unwrap().is_empty()
    });
    said(&cluster, &[&via[..], &["2:in/file", &near]].concat()).fine();
    assert_eq!(std::fs::read(&near).unwrap(), b"served");
    said(&cluster, &[&via[..], &[&near, "2:in/"]].concat()).fine();
    assert_eq!(std::fs::read(folder.join("in/near")).unwrap(), b"served");
    let absolute = format!("2:{}", cluster.path("beside").display());
    for (path, why) in [
        ("2:../beside", "leads out of the folder"),
        ("2:in/../../beside", "leads out of the folder"),
        (&*absolute, "is an absolute path"),
        ("2:up/beside", "links are not followed"),
    ] {
        let got = cluster.path("got");
        let ran = said(&cluster, &[&via[..], &[path, got.to_str().unwrap()]].concat());
        assert!(ran.code() != 0 && ran.err.contains(why), "{path}: {}", ran.err);
        let ran = said(&cluster, &[&via[..], &[&near, path]].concat());
        assert!(ran.code() != 0 && ran.err.contains(why), "{path}: {}", ran.err);
        assert!(!got.exists());
    }
    assert_eq!(std::fs::read(cluster.path("beside")).unwrap(), b"secret");
    // A name is anybody's: the node is not.
    said(&cluster, &["--via", "cp-2", "1:in/file", &near])
        .refused(5, &["cp-2 is bound, but not on node ada1"]);
    assert!(Command::new("kill").args(["-INT", &server.id().to_string()]).status().unwrap().success());
    finish(server).fine();
}
