package wire_test

import (
	"bytes"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/internal/origin"
	"github.com/damselfly-io/damselfly/internal/task"
	"github.com/damselfly-io/damselfly/internal/wire"
)

const id = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func TestRequest(t *testing.T) {
	const u = "https://registry.example/v2/a/blobs/" + id
	header := func(name, value string) *apiv1.Source {
		return &apiv1.Source{Url: u, Headers: []*apiv1.Header{{Name: name, Value: value}}}
	}
	for _, tc := range []struct {
		name string
		in   *apiv1.Source
		ok   bool
	}{
		{"none", nil, false},
		{"blob", &apiv1.Source{TaskId: id, Url: u}, true},
		{"by URL only", &apiv1.Source{Url: "http://files.example/x?y=z"}, true},
		{"no URL", &apiv1.Source{TaskId: id}, false},
		{"bad id", &apiv1.Source{TaskId: "sha256:..", Url: u}, false},
		{"relative URL", &apiv1.Source{Url: "/v2/a"}, false},
		{"file URL", &apiv1.Source{Url: "file:///etc/passwd"}, false},
		{"no host", &apiv1.Source{Url: "http:///x"}, false},
		{"malformed URL", &apiv1.Source{Url: "http://[::1"}, false},
		{"header", header("X-Some_1", "va lue\tä"), true},
		{"header without a name", header("", "v"), false},
		{"header name with a colon", header("a:b", "v"), false},
		{"header name with a line end", header("a\r\nb", "v"), false},
		{"header value with a line end", header("a", "v\r\nHost: evil"), false},
		{"header value with NUL", header("a", "\x00"), false},
		{"table", &apiv1.Source{Url: u, Table: &apiv1.Table{Length: 5, Ends: []int64{2, 5}}}, true},
		{"bad table", &apiv1.Source{Url: u, Table: &apiv1.Table{Length: 5, Ends: []int64{2, 4}}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := wire.Request(tc.in); (err == nil) != tc.ok || (err != nil && !errors.Is(err, wire.ErrInvalid)) {
				t.Errorf("Request: %v, want ok %v", err, tc.ok)
			}
		})
	}
}

func TestRequestKeepsSecretsOutOfErrors(t *testing.T) {
	_, err := wire.Request(&apiv1.Source{Url: "ftp://x/?sig=sesame", Credential: &apiv1.Credential{Password: "sesame"}})
	if err == nil || strings.Contains(err.Error(), "sesame") {
		t.Errorf("error %v", err)
	}
}

func TestSourceThereAndBack(t *testing.T) {
	table := task.Variable([]int64{3, 9})
	want := wire.Source{
		ID: id, URL: "http://h:1/x", Header: http.Header{"A": {"1", "2"}, "B": {"3"}},
		Credential: origin.Credential{Username: "user", Password: "pass"}, Table: &table,
	}
	got, err := wire.Request(wire.FromSource(want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	want = wire.Source{URL: "http://h/x", Header: http.Header{}, Credential: origin.Credential{Authorization: "Bearer t"}}
	m := wire.FromSource(want)
	if got, err = wire.Request(m); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if m.Table != nil || m.TaskId != "" {
		t.Errorf("unset fields are sent: %v", m)
	}
}

func TestTable(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   *apiv1.Table
		ok   bool
	}{
		{"none", nil, false},
		{"empty message is empty content", &apiv1.Table{}, true},
		{"uniform", &apiv1.Table{Length: 25, PieceSize: 10}, true},
		{"variable", &apiv1.Table{Length: 25, Ends: []int64{1, 25}}, true},
		{"length without pieces", &apiv1.Table{Length: 25}, false},
		{"negative piece size", &apiv1.Table{Length: 25, PieceSize: -1}, false},
		{"too many pieces", &apiv1.Table{Length: 1 << 40, PieceSize: 1}, false},
		{"descending", &apiv1.Table{Length: 25, Ends: []int64{26, 25}}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table, err := wire.Table(tc.in)
			if (err == nil) != tc.ok || (err != nil && !errors.Is(err, wire.ErrInvalid)) {
				t.Fatalf("Table: %v, want ok %v", err, tc.ok)
			}
			if err != nil {
				return
			}
			again, err := wire.Table(wire.FromTable(table))
			if err != nil || !again.Equal(table) {
				t.Errorf("there and back: %+v, %v; want %+v", again, err, table)
			}
		})
	}
}

func TestTableDoesNotAliasTheMessage(t *testing.T) {
	m := &apiv1.Table{Length: 25, Ends: []int64{1, 25}}
	table, err := wire.Table(m)
	if err != nil {
		t.Fatal(err)
	}
	m.Ends[0] = 24
	if table.Ends[0] != 1 {
		t.Error("changing the message changes the table")
	}
}

func TestDigests(t *testing.T) {
	two := append(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)...)
	for _, tc := range []struct {
		name   string
		in     *apiv1.Digests
		pieces int
		want   int
		ok     bool
	}{
		{"none", &apiv1.Digests{First: 3}, 3, 0, true},
		{"two", &apiv1.Digests{First: 1, Digests: two}, 3, 2, true},
		{"one beyond the end", &apiv1.Digests{First: 2, Digests: two}, 3, 0, false},
		{"all beyond the end", &apiv1.Digests{First: 1<<32 - 1, Digests: two}, 3, 0, false},
		{"cut short", &apiv1.Digests{Digests: two[:63]}, 3, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			first, got, err := wire.Digests(tc.in, tc.pieces)
			if (err == nil) != tc.ok || (err != nil && !errors.Is(err, wire.ErrInvalid)) {
				t.Fatalf("Digests: %v, want ok %v", err, tc.ok)
			}
			if err == nil && (len(got) != tc.want || first != int(tc.in.First)) {
				t.Errorf("%d digests from %d, want %d from %d", len(got), first, tc.want, tc.in.First)
			}
			if len(got) == 2 && (got[0][31] != 1 || got[1][0] != 2) {
				t.Errorf("digests are %v", got)
			}
		})
	}
}

func TestHeaderThereAndBack(t *testing.T) {
	want := http.Header{"Accept": {"a", "b"}, "X-Y": {""}}
	if got := wire.Header(wire.FromHeader(want)); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := wire.Header(nil); got == nil || len(got) != 0 {
		t.Errorf("no headers give %v", got)
	}
}

func marshal(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func FuzzRequest(f *testing.F) {
	f.Add(marshal(f, &apiv1.Source{TaskId: id, Url: "http://h/x", Headers: []*apiv1.Header{{Name: "a", Value: "b"}},
		Credential: &apiv1.Credential{Username: "u"}, Table: &apiv1.Table{Length: 5, PieceSize: 2}}))
	f.Add(marshal(f, &apiv1.Source{Table: &apiv1.Table{Length: 5, Ends: []int64{5}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m apiv1.Source
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		s, err := wire.Request(&m)
		if err != nil {
			return
		}
		if s.Table != nil && s.Table.Validate() != nil {
			t.Fatalf("invalid table %+v was taken", s.Table)
		}
		req, err := http.NewRequest(http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatalf("URL %q was taken: %v", s.URL, err)
		}
		req.Header = s.Header
		again, err := wire.Request(wire.FromSource(s))
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("there and back: %+v, %v; want %+v", again, err, s)
		}
	})
}

func FuzzTable(f *testing.F) {
	f.Add(marshal(f, &apiv1.Table{Length: 25, PieceSize: 10}))
	f.Add(marshal(f, &apiv1.Table{Length: 25, Ends: []int64{3, 25}}))
	f.Add(marshal(f, &apiv1.Table{Length: -1, PieceSize: -1, Ends: []int64{-1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m apiv1.Table
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		table, err := wire.Table(&m)
		if err != nil {
			return
		}
		total := int64(0)
		for i := range table.Count() {
			off, n := table.Piece(i)
			if off != total || n <= 0 {
				t.Fatalf("piece %d is [%d, +%d)", i, off, n)
			}
			total += n
		}
		if total != table.Length {
			t.Fatalf("pieces have %d bytes of %d", total, table.Length)
		}
	})
}

func FuzzDigests(f *testing.F) {
	f.Add(marshal(f, &apiv1.Digests{First: 3, Digests: make([]byte, 64)}), 5)
	f.Add(marshal(f, &apiv1.Digests{First: 1<<32 - 1, Digests: make([]byte, 32)}), 1<<20)
	f.Fuzz(func(t *testing.T, b []byte, pieces int) {
		var m apiv1.Digests
		if pieces < 0 || pieces > task.MaxPieces || proto.Unmarshal(b, &m) != nil {
			return
		}
		first, digests, err := wire.Digests(&m, pieces)
		if err == nil && (first < 0 || first+len(digests) > pieces) {
			t.Fatalf("pieces [%d, +%d) of %d", first, len(digests), pieces)
		}
	})
}
