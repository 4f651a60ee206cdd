package ticket_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/ticket"
)

var (
	master = []byte("the supernode's master key, 32 B")
	now    = time.Unix(1_700_000_000, 0)
	taskA  = task.URLID("http://a", "", "", 1)
	taskB  = task.URLID("http://b", "", "", 1)
)

func valid() ticket.Ticket {
	return ticket.Ticket{Task: taskA, Parent: "parent", Holder: "holder", Expires: now.Add(time.Hour)}
}

func TestVerify(t *testing.T) {
	key := ticket.ServingKey(master, "parent")
	good := key.Issue(valid())
	got, err := key.Verify(good, taskA, "parent", now)
	if err != nil || got.Task != taskA || got.Parent != "parent" || got.Holder != "holder" || !got.Expires.Equal(valid().Expires) {
		t.Fatalf("a valid ticket gives %+v, %v", got, err)
	}
	body, mac, _ := strings.Cut(good, ".")
	forgedBody := base64.RawURLEncoding.EncodeToString([]byte("v1\x009999999999\x00" + string(taskA) + "\x00parent\x00mallory"))
	for _, tc := range []struct {
		name   string
		key    ticket.Key
		ticket string
		id     task.ID
		parent string
		at     time.Time
		want   error
	}{
		{"none", key, "", taskA, "parent", now, ticket.ErrMalformed},
		{"at its end", key, good, taskA, "parent", now.Add(time.Hour), ticket.ErrExpired},
		{"just before its end", key, good, taskA, "parent", now.Add(time.Hour - time.Second), nil},
		{"another task", key, good, taskB, "parent", now, ticket.ErrForeign},
		{"another parent by name", key, good, taskA, "other", now, ticket.ErrForeign},
		{"shown to another parent", ticket.ServingKey(master, "other"), good, taskA, "other", now, ticket.ErrForged},
		{"of another cluster", ticket.ServingKey([]byte("another master key"), "parent"), good, taskA, "parent", now, ticket.ErrForged},
		{"no key yet", nil, good, taskA, "parent", now, ticket.ErrForged},
		{"signed with no key", nil, ticket.Key(nil).Issue(valid()), taskA, "parent", now, ticket.ErrForged},
		{"another body under the signature", key, forgedBody + "." + mac, taskA, "parent", now, ticket.ErrForged},
		{"signature cut short", key, body + "." + mac[:len(mac)-4], taskA, "parent", now, ticket.ErrForged},
		{"no signature", key, body, taskA, "parent", now, ticket.ErrMalformed},
		{"empty signature", key, body + ".", taskA, "parent", now, ticket.ErrForged},
		{"not base64", key, "!!." + mac, taskA, "parent", now, ticket.ErrMalformed},
		{"signature not base64", key, body + ".!!", taskA, "parent", now, ticket.ErrMalformed},
		{"too long", key, strings.Repeat("A", 4096) + "." + mac, taskA, "parent", now, ticket.ErrMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.key.Verify(tc.ticket, tc.id, tc.parent, tc.at); !errors.Is(err, tc.want) {
				t.Errorf("Verify: %v, want %v", err, tc.want)
			}
		})
	}
}

// A name that contains the separator must not be read as other fields.
func TestNamesWithSeparators(t *testing.T) {
	key := ticket.ServingKey(master, "parent")
	shifted := valid()
	shifted.Holder = "x\x00y"
	if _, err := key.Verify(key.Issue(shifted), taskA, "parent", now); !errors.Is(err, ticket.ErrMalformed) {
		t.Errorf("holder with NUL: %v, want ErrMalformed", err)
	}
	shifted = valid()
	shifted.Parent = "parent\x00holder"
	if _, err := key.Verify(key.Issue(shifted), taskA, "parent", now); !errors.Is(err, ticket.ErrMalformed) {
		t.Errorf("parent with NUL: %v, want ErrMalformed", err)
	}
}

func TestServingKeysDiffer(t *testing.T) {
	a, b := ticket.ServingKey(master, "a"), ticket.ServingKey(master, "b")
	if string(a) == string(b) || string(a) == string(master) || len(a) != 32 {
		t.Error("keys of different parents are not different")
	}
	if string(a) != string(ticket.ServingKey(master, "a")) {
		t.Error("the key of a parent changes")
	}
}

func FuzzVerify(f *testing.F) {
	key := ticket.ServingKey(master, "parent")
	good := key.Issue(valid())
	f.Add(good)
	f.Add("")
	f.Add(".")
	f.Add(strings.Repeat(".", 3000))
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, s string) {
		got, err := key.Verify(s, taskA, "parent", now)
		if err != nil {
			return
		}
		// The encoding is not unique; what it says is.
		if got.Holder != "holder" || !got.Expires.Equal(valid().Expires) {
			t.Fatalf("%q was taken for %+v", s, got)
		}
	})
}
