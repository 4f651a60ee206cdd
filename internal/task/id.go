package task

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrInvalidID is returned by ParseID for a string that names no task.
var ErrInvalidID = errors.New("invalid task id")

// ID names a task: "sha256:" and 64 hex digits for a blob, where the digits
// are the digest of the whole content, or "url:" and 64 hex digits for a URL,
// where they are a digest of the URL and its validators.
type ID string

const (
	blobPrefix = "sha256:"
	urlPrefix  = "url:"
)

// BlobID returns the ID of the blob whose content has the given SHA-256.
func BlobID(d Digest) ID { return ID(blobPrefix + d.String()) }

// URLID returns the ID of the content of url as described by its validators.
// Content that changes under an unchanged URL gets another ID because at least
// one validator changes with it. The fields are length-prefixed, so that no
// two different inputs are joined to the same bytes.
func URLID(url, etag, lastModified string, length int64) ID {
	h := sha256.New()
	for _, field := range []string{url, etag, lastModified, strconv.FormatInt(length, 10)} {
		fmt.Fprintf(h, "%d:%s", len(field), field)
	}
	return ID(urlPrefix + hex.EncodeToString(h.Sum(nil)))
}

// ParseID checks that s has the form of an ID. IDs come from peers and become
// file names, so nothing else may be turned into an ID.
func ParseID(s string) (ID, error) {
	hexPart, ok := strings.CutPrefix(s, blobPrefix)
	if !ok {
		hexPart, ok = strings.CutPrefix(s, urlPrefix)
	}
	if !ok || !isLowerHex(hexPart) {
		return "", fmt.Errorf("%w: %q (want sha256:<64 hex digits> or url:<64 hex digits>)", ErrInvalidID, truncate(s))
	}
	return ID(s), nil
}

// Digest returns the SHA-256 that the whole content must have, and false for a
// task whose ID does not fix it.
func (id ID) Digest() (Digest, bool) {
	hexPart, ok := strings.CutPrefix(string(id), blobPrefix)
	if !ok {
		return Digest{}, false
	}
	d, err := ParseDigest(hexPart)
	return d, err == nil
}

// Short returns a form for log lines: the kind and the first 12 hex digits.
func (id ID) Short() string {
	kind, rest, _ := strings.Cut(string(id), ":")
	if len(rest) > 12 {
		rest = rest[:12]
	}
	return kind + ":" + rest
}

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// ParseDigest reads 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if !isLowerHex(s) {
		return d, fmt.Errorf("invalid SHA-256 %q: want 64 lower-case hex digits", truncate(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return d, fmt.Errorf("invalid SHA-256 %q: %w", truncate(s), err)
	}
	return d, nil
}

// String returns the digest as 64 lower-case hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

func isLowerHex(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// truncate keeps hostile input from filling an error message.
func truncate(s string) string {
	const limit = 100
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}
