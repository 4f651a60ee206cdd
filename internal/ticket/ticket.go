// Package ticket issues and checks the permits with which peers fetch pieces
// from each other.
//
// A ticket says: until Expires, Holder may fetch pieces of Task from Parent.
// It is authenticated by HMAC-SHA256 under the parent's serving key, which is
// derived from the supernode's master key and the parent's name. A parent
// therefore checks tickets without asking anybody, and a daemon that is taken
// over can forge tickets for itself only, not for other parents.
//
// A ticket is a bearer token on the cluster's own network: it does not bind
// the holder's address, so that nodes with several addresses work.
package ticket

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
)

// Reasons for which Verify refuses a ticket.
var (
	ErrMalformed = errors.New("malformed ticket")
	ErrForged    = errors.New("ticket was not issued by this cluster's supernode for this node")
	ErrExpired   = errors.New("expired ticket")
	ErrForeign   = errors.New("ticket is for another task or node")
)

// Ticket permits Holder to fetch pieces of Task from Parent until Expires.
type Ticket struct {
	Task    task.ID
	Parent  string
	Holder  string
	Expires time.Time
}

// Key signs or checks tickets of one parent.
type Key []byte

// ServingKey derives the key of one parent from the supernode's master key.
func ServingKey(master []byte, parent string) Key {
	mac := hmac.New(sha256.New, master)
	mac.Write([]byte("damselfly serving key v1\x00" + parent))
	return mac.Sum(nil)
}

// maxLen bounds a ticket on the wire: two names, a task id, a time and a MAC.
const maxLen = 2048

var encoding = base64.RawURLEncoding

// Issue returns the wire form of t: base64url of
// "v1 NUL expiry NUL task NUL parent NUL holder", a dot, base64url of the MAC.
func (k Key) Issue(t Ticket) string {
	body := strings.Join([]string{
		"v1", strconv.FormatInt(t.Expires.Unix(), 10), string(t.Task), t.Parent, t.Holder,
	}, "\x00")
	return encoding.EncodeToString([]byte(body)) + "." + encoding.EncodeToString(k.mac(body))
}

func (k Key) mac(body string) []byte {
	mac := hmac.New(sha256.New, k)
	mac.Write([]byte(body))
	return mac.Sum(nil)
}

// Verify checks that s permits fetching pieces of id from parent at time now,
// and returns the ticket.
func (k Key) Verify(s string, id task.ID, parent string, now time.Time) (Ticket, error) {
	t, err := k.open(s)
	switch {
	case err != nil:
		return Ticket{}, err
	case !now.Before(t.Expires):
		return Ticket{}, fmt.Errorf("%w: ended at %s", ErrExpired, t.Expires.UTC().Format(time.RFC3339))
	case t.Task != id || t.Parent != parent:
		return Ticket{}, fmt.Errorf("%w: it is for %s at node %q", ErrForeign, t.Task.Short(), t.Parent)
	}
	return t, nil
}

func (k Key) open(s string) (Ticket, error) {
	if len(s) > maxLen {
		return Ticket{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(s))
	}
	encBody, encMAC, ok := strings.Cut(s, ".")
	if !ok {
		return Ticket{}, fmt.Errorf("%w: no signature", ErrMalformed)
	}
	body, err := encoding.DecodeString(encBody)
	if err != nil {
		return Ticket{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	mac, err := encoding.DecodeString(encMAC)
	if err != nil {
		return Ticket{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(k) == 0 || !hmac.Equal(mac, k.mac(string(body))) {
		return Ticket{}, ErrForged
	}
	fields := strings.Split(string(body), "\x00")
	if len(fields) != 5 || fields[0] != "v1" {
		return Ticket{}, fmt.Errorf("%w: unknown version or fields", ErrMalformed)
	}
	expires, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return Ticket{}, fmt.Errorf("%w: expiry: %w", ErrMalformed, err)
	}
	return Ticket{Task: task.ID(fields[2]), Parent: fields[3], Holder: fields[4], Expires: time.Unix(expires, 0)}, nil
}
