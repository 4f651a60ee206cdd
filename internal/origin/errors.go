package origin

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode"
)

var (
	// ErrChanged is returned when an object's validators or length differ from
	// those at the beginning of a read: the bytes read so far and those to come
	// belong to different versions.
	ErrChanged = errors.New("object changed at the origin")
	// ErrShort is returned when an answer ended before the length it announced,
	// and resuming did not help.
	ErrShort = errors.New("origin ended the content early")
	// ErrStalled is returned when an origin sent nothing for IdleTimeout, and
	// trying again did not help.
	ErrStalled = errors.New("origin stalled")
	// ErrBadAnswer is returned for an answer that breaks HTTP or does not fit
	// its request.
	ErrBadAnswer = errors.New("bad answer from origin")
	// ErrRedirect is returned for a redirect that is not followed: the eleventh,
	// or one to something else than an http or https URL.
	ErrRedirect = errors.New("redirect not followed")
)

// permanentError marks an error that the same request would meet again.
type permanentError struct{ error }

func permanent(err error) error        { return permanentError{err} }
func (e permanentError) Unwrap() error { return e.error }

// IsPermanent reports whether doing the same again cannot help: a status that
// is not Temporary, a changed object, a bad answer, a certificate that does not
// verify, or a malformed request. It is false for nil, for the network and for
// an ended context.
func IsPermanent(err error) bool {
	var (
		marked permanentError
		status *StatusError
		cert   *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &status):
		return !status.Temporary()
	case errors.As(err, &marked), errors.As(err, &cert):
		return true
	}
	return errors.Is(err, ErrChanged) || errors.Is(err, ErrBadAnswer) || errors.Is(err, ErrRedirect)
}

// StatusError is an answer whose status says that the request failed.
type StatusError struct {
	Method string
	// URL that answered, after redirects; without userinfo and the values of
	// query parameters that may be secret.
	URL    string
	Status int
	Header http.Header
	// Message is what the registry's JSON errors say, or the beginning of the
	// text, at most 1 KiB. It comes from the origin and is not to be trusted.
	Message string
	// Redirected is set if the answer is from another origin than the one asked.
	Redirected bool
}

// Error returns method, URL, status and message.
func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Temporary reports whether a later attempt may succeed: 408, 429 and 5xx but
// 501; and 400, 401 and 403 from a server that was redirected to, since these
// are how object stores answer a signed URL that has expired, and the next
// attempt gets a new one.
func (e *StatusError) Temporary() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return e.Redirected
	case http.StatusNotImplemented:
		return false
	}
	return e.Status >= 500
}

const (
	messageLimit = 1 << 10
	drainLimit   = 64 << 10
)

// statusError turns an answer into an error and ends it. The rest of a small
// body is read so that the connection can be used again.
func statusError(method, origin string, resp *http.Response) *StatusError {
	// A body that cannot be read leaves the message empty: the status is what
	// matters.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, drainLimit))
	_ = resp.Body.Close()
	return &StatusError{
		Method:     method,
		URL:        RedactURL(resp.Request.URL.String()),
		Status:     resp.StatusCode,
		Header:     resp.Header,
		Message:    message(body),
		Redirected: originOf(resp.Request.URL) != origin,
	}
}

// message extracts the readable part of an error body.
func message(body []byte) string {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	text := string(body)
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		parts := make([]string, 0, len(doc.Errors))
		for _, e := range doc.Errors {
			parts = append(parts, strings.TrimPrefix(e.Code+": "+e.Message, ": "))
		}
		text = strings.Join(parts, "; ")
	}
	return clean(text)
}

// clean cuts s to messageLimit and to one line of printable characters.
func clean(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), messageLimit)], "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// clip keeps what an origin sent from filling an error message.
func clip(s string) string {
	const limit = 100
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return s
}

// plainParams are query parameters whose values are no secrets. Every other
// value is taken for one: signing schemes are many and new ones come.
var plainParams = map[string]bool{
	"ns": true, "n": true, "last": true, "service": true, "scope": true,
	"digest": true, "artifactType": true, "versionId": true,
}

// RedactURL returns raw for messages: without userinfo and fragment, and with
// the values of query parameters replaced unless they are known to be no
// secrets.
func RedactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(malformed URL)"
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	if u.RawQuery != "" {
		u.RawQuery = redactQuery(u.RawQuery)
	}
	return u.String()
}

func redactQuery(query string) string {
	params := strings.Split(query, "&")
	for i, param := range params {
		name, _, ok := strings.Cut(param, "=")
		switch {
		case !ok:
			params[i] = "REDACTED" // a bare value may be a token
		case !plainParams[name]:
			params[i] = name + "=REDACTED"
		}
	}
	return strings.Join(params, "&")
}
