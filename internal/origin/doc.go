// Package origin reads objects from where content comes from: OCI registries
// and HTTP(S) servers.
//
// What a Client guarantees:
//
//   - A Body delivers the bytes of one version of an object, in order and
//     without gaps. A connection that breaks, ends early or stalls is resumed
//     at the next byte; validators (ETag, Last-Modified) and the total length
//     are compared, and a difference ends the read with ErrChanged.
//   - io.EOF means that the announced length was delivered. Only an answer
//     without any length (HTTP/1.0 style) can end early unseen.
//   - An answer that does not fit the request (a Content-Range other than the
//     one asked for, a content coding) is an error, never data.
//   - Failures that may pass (network, 408, 429, 5xx) are retried with
//     exponential backoff; Retry-After is honoured up to a bound. The end of
//     the context ends every wait at once.
//   - A credential goes to the scheme, host and port it was given for, and
//     nowhere else: a redirect to another origin is followed without it and
//     without any caller's header that could carry a secret. A username and
//     password go besides to the token server that the registry names, under
//     the rule stated at Credential.
//   - No error and no log form made here contains a password, a token or a
//     signed query value.
//
// What it does not: it does not check digests, which are the caller's to know;
// it does not divide an object into ranges, since the caller knows which it
// needs first (any number of Bodies of one object may be read at once, and
// Info.Ranges says whether that helps); it does not limit rates or cache
// content. Nothing is persisted: tokens live in memory.
//
// A Client starts no goroutines beyond those of its http.RoundTripper.
package origin
