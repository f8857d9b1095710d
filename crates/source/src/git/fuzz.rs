//! What holds for whatever a client may say of a repository.

use super::spec::Spec;
use crate::Identifier;

/// The address with its fragment, and the full one of the attributes, one in each line.
pub fn repository(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (address, full) = text.split_once('\n').unwrap_or((&text, ""));
    let mut attrs = std::collections::BTreeMap::new();
    if !full.is_empty() {
        attrs.insert("git.fullurl".to_owned(), full.to_owned());
    }
    let Ok(id) = Identifier::parse(&format!("git://{address}"), attrs, Default::default()) else {
        return;
    };
    let Ok(spec) = Spec::new(&id) else { return };
    // They become arguments of a program, and a folder in what it wrote.
    for argument in [&spec.remote, &spec.reference] {
        assert!(!argument.starts_with('-') && !argument.contains('\0'));
    }
    assert!(!spec.subdir.split('/').any(|part| part == ".."), "{spec:?}");
    assert!(!spec.subdir.starts_with('/'), "{spec:?}");
    let _ = spec.host();
    // A password is not shown.
    if let Ok(url) = reqwest::Url::parse(&spec.remote)
        && let Some(password) = url.password().filter(|password| password.len() > 8)
    {
        let elsewhere = url.path().contains(password) || url.username().contains(password);
        let elsewhere = elsewhere || url.host_str().is_some_and(|host| host.contains(password));
        let elsewhere = elsewhere || url.fragment().is_some_and(|text| text.contains(password));
        let query = url.query().is_some_and(|query| query.contains(password));
        assert!(
            elsewhere || query || !spec.shown().contains(password),
            "{}",
            spec.shown()
        );
    }
}
