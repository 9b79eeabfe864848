//! An app's health check: what the image says (docker's `Healthcheck`), changed by what the user says.

use std::time::Duration;

use podvm_image::ImageHealthcheck;
use podvm_pod::manifest::HealthCheck;

use super::app_arguments::AppArgs;
use super::error::PrepareError;
use super::image::ImageSettings;

/// `--health-cmd` and an image's test that mean that there is none.
const NONE: &str = "none";

/// The check of an app, if it is to be looked at.
///
/// # Errors
/// [`PrepareError`] for settings of a check that is not there, and for an image's that makes no sense.
pub fn health(args: &AppArgs, image: &ImageSettings) -> Result<Option<HealthCheck>, PrepareError> {
    let of_image = image.health.clone().unwrap_or_default();
    let exec = match args.health_cmd.as_deref() {
        Some(command) if command.eq_ignore_ascii_case(NONE) => None,
        Some(text) => Some(shell(&image.shell, text)),
        None => command(&of_image, &image.shell)
            .map_err(|what| PrepareError::Image { image: image.image.name.clone(), what })?,
    };
    let settings = [args.health_interval, args.health_timeout, args.health_start_period];
    let Some(exec) = exec else {
        if settings.iter().any(Option::is_some) || args.health_retries.is_some() {
            return Err(PrepareError::NoHealthCheck(image.image.name.clone()));
        }
        return Ok(None);
    };
    let [interval, timeout, start_period] = settings.map(|wait| wait.map(|wait| wait.0));
    let default = HealthCheck::DEFAULT_INTERVAL;
    let at_least_1 = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1);
    Ok(Some(HealthCheck {
        exec,
        interval_ms: at_least_1(interval.or(nanoseconds(of_image.interval)).unwrap_or(default)),
        timeout_ms: at_least_1(timeout.or(nanoseconds(of_image.timeout)).unwrap_or(default)),
        start_period_ms: start_period.or(nanoseconds(of_image.start_period)).map_or(0, at_least_1),
        retries: args
            .health_retries
            .or(of_image.retries.filter(|retries| *retries > 0).and_then(|retries| retries.try_into().ok()))
            .unwrap_or(HealthCheck::DEFAULT_RETRIES),
    }))
}

/// In an image, 0 and less mean the default.
fn nanoseconds(length: Option<i64>) -> Option<Duration> {
    length.and_then(|length| length.try_into().ok()).filter(|length| *length > 0).map(Duration::from_nanos)
}

/// The words by which a shell runs a text: the image's own shell, or `/bin/sh`.
fn shell(own: &[String], text: &str) -> Vec<String> {
    let mut words = if own.is_empty() { ["/bin/sh", "-c"].map(String::from).into() } else { own.to_vec() };
    words.push(text.to_owned());
    words
}

/// The words of an image's test: `NONE`, `CMD` with words, or `CMD-SHELL` with a text.
fn command(health: &ImageHealthcheck, own_shell: &[String]) -> Result<Option<Vec<String>>, String> {
    match health.test.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["NONE"] | ["CMD"] => Ok(None),
        ["CMD", words @ ..] => Ok(Some(words.iter().map(ToString::to_string).collect())),
        ["CMD-SHELL", text] => Ok(Some(shell(own_shell, text))),
        [kind, ..] => Err(format!("its health check begins with {kind:?}; CMD, CMD-SHELL and NONE are known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(test: &[&str]) -> Result<Option<Vec<String>>, String> {
        let test = test.iter().map(ToString::to_string).collect();
        command(&ImageHealthcheck { test, ..ImageHealthcheck::default() }, &[])
    }

    #[test]
    fn an_images_test_is_a_command_a_text_or_nothing() {
        assert_eq!(words(&[]), Ok(None));
        assert_eq!(words(&["NONE"]), Ok(None));
        assert_eq!(words(&["CMD", "curl", "-f"]), Ok(Some(vec!["curl".into(), "-f".into()])));
        assert_eq!(words(&["CMD-SHELL", "a | b"]), Ok(Some(["/bin/sh", "-c", "a | b"].map(String::from).into())));
        let own = ["/bin/bash".to_owned(), "-ec".to_owned()];
        assert_eq!(shell(&own, "a | b"), ["/bin/bash", "-ec", "a | b"]);
        assert!(words(&["curl"]).unwrap_err().contains("curl"));
    }
}
