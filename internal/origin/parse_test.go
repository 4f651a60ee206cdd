package origin

import (
	"fmt"
	"math"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseContentRange(t *testing.T) {
	tests := []struct {
		in                 string
		first, last, total int64
		ok                 bool
	}{
		{"bytes 0-0/1", 0, 0, 1, true},
		{"bytes 10-19/100", 10, 19, 100, true},
		{"Bytes 10-19/*", 10, 19, -1, true},
		{"bytes */100", -1, -1, 100, true},
		{"bytes */0", -1, -1, 0, true},
		{"", 0, 0, 0, false},
		{"bytes */*", 0, 0, 0, false},
		{"bytes 10-19", 0, 0, 0, false},
		{"bytes 19-10/100", 0, 0, 0, false},
		{"bytes 10-100/100", 0, 0, 0, false},
		{"bytes +1-2/3", 0, 0, 0, false},
		{"bytes -1/3", 0, 0, 0, false},
		{"bytes 1-/3", 0, 0, 0, false},
		{"bytes  1-2/3", 0, 0, 0, false},
		{"bytes 1-2/3 ", 0, 0, 0, false},
		{"bytes 1-2-3/9", 0, 0, 0, false},
		{"bytes=1-2/3", 0, 0, 0, false},
		{"items 1-2/3", 0, 0, 0, false},
		{"bytes 0-9223372036854775807/*", 0, 0, 0, false},
		{"bytes 0-1/9223372036854775808", 0, 0, 0, false},
	}
	for _, tt := range tests {
		first, last, total, err := ParseContentRange(tt.in)
		if (err == nil) != tt.ok || first != tt.first || last != tt.last || total != tt.total {
			t.Errorf("%q: %d-%d/%d, %v", tt.in, first, last, total, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 10-19/*", "bytes */100", "bytes 5-4/9", "x", "bytes 0-9223372036854775807/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := ParseContentRange(s)
		if err != nil {
			return
		}
		again := fmt.Sprintf("bytes %d-%d/", first, last)
		if first < 0 {
			again = "bytes */"
		}
		if total < 0 {
			again += "*"
		} else {
			again += fmt.Sprint(total)
		}
		f2, l2, t2, err := ParseContentRange(again)
		if err != nil || f2 != first || l2 != last || t2 != total {
			t.Errorf("%q reads as %q, which does not read the same: %v", s, again, err)
		}
		if first >= 0 && (last < first || last == math.MaxInt64 || (total >= 0 && last >= total)) {
			t.Errorf("%q gives %d-%d/%d", s, first, last, total)
		}
	})
}

func TestParseChallenges(t *testing.T) {
	ch := func(scheme string, pairs ...string) challenge {
		c := challenge{scheme: scheme}
		for i := 0; i < len(pairs); i += 2 {
			if c.params == nil {
				c.params = map[string]string{}
			}
			c.params[pairs[i]] = pairs[i+1]
		}
		return c
	}
	tests := []struct {
		in   string
		want []challenge
		ok   bool
	}{
		{"", nil, true},
		{" , ,", nil, true},
		{`Basic realm="r"`, []challenge{ch("basic", "realm", "r")}, true},
		{`Bearer realm="https://auth.test/token",service="reg",scope="repository:a/b:pull,push"`,
			[]challenge{ch("bearer", "realm", "https://auth.test/token", "service", "reg", "scope", "repository:a/b:pull,push")}, true},
		{`Bearer realm=https://auth.test/t?a=b,service=reg`, []challenge{ch("bearer", "realm", "https://auth.test/t?a=b", "service", "reg")}, true},
		{`BEARER Realm = "a\"b\\" , error="x"`, []challenge{ch("bearer", "realm", `a"b\`, "error", "x")}, true},
		{`Basic realm="a", Bearer realm="b"`, []challenge{ch("basic", "realm", "a"), ch("bearer", "realm", "b")}, true},
		{`Negotiate, Basic realm="a"`, []challenge{ch("negotiate"), ch("basic", "realm", "a")}, true},
		{`Negotiate abc==, Basic realm=a`, []challenge{{scheme: "negotiate", token68: "abc=="}, ch("basic", "realm", "a")}, true},
		{`Basic realm="a", realm="b"`, []challenge{ch("basic", "realm", "a")}, true},
		{`Basic`, []challenge{ch("basic")}, true},
		{`Basic realm="open`, nil, false},
		{`Basic realm="a" x`, nil, false},
		{`"quoted"`, nil, false},
		{`Basic/x realm="a"`, nil, false},
		{`Basic realm="a", =`, []challenge{ch("basic", "realm", "a")}, false},
	}
	for _, tt := range tests {
		got, err := parseChallenges(tt.in)
		if (err == nil) != tt.ok || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, %v; want %+v", tt.in, got, err, tt.want)
		}
	}
	h := http.Header{"Www-Authenticate": {`Basic realm="open`, `Bearer realm="b"`}}
	if got := challenges(h); !reflect.DeepEqual(got, []challenge{ch("bearer", "realm", "b")}) {
		t.Errorf("a malformed value hides another: %+v", got)
	}
}

func FuzzChallenge(f *testing.F) {
	for _, s := range []string{
		`Basic realm="r"`, `Bearer realm="https://a/t",service="s",scope="repository:a:pull,push"`,
		`Negotiate abc==, Basic realm=a`, `Basic realm="a\"`, `,,`, `a b=c d`, `Bearer realm=`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, _ := parseChallenges(s)
		size := 0
		for _, ch := range got {
			if ch.scheme == "" || strings.ToLower(ch.scheme) != ch.scheme || (ch.token68 != "" && ch.params != nil) {
				t.Errorf("%q: %+v", s, ch)
			}
			size += len(ch.scheme) + len(ch.token68)
			for name, value := range ch.params {
				if name == "" {
					t.Errorf("%q: parameter without name", s)
				}
				size += len(name) + len(value)
			}
		}
		// Lower case of a token is ASCII, so nothing can grow.
		if size > len(s) {
			t.Errorf("%q: %d bytes read from %d", s, size, len(s))
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"0", 0, true}, {" 120 ", 2 * time.Minute, true}, {"9000000000000000000", 24 * time.Hour, true},
		{now.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second, true},
		{now.Add(-time.Hour).Format(http.TimeFormat), 0, true},
		{"", 0, false}, {"-1", 0, false}, {"+1", 0, false}, {"1.5", 0, false}, {"soon", 0, false}, {"99999999999999999999", 0, false},
	}
	for _, tt := range tests {
		if got, ok := parseRetryAfter(tt.in, now); got != tt.want || ok != tt.ok {
			t.Errorf("%q: %v, %v", tt.in, got, ok)
		}
	}
}

func TestRedactURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:hunter2@a.test/x?ns=docker.io&X-Amz-Signature=hunter2#hunter2": "https://a.test/x?ns=docker.io&X-Amz-Signature=REDACTED",
		"https://a.test/x?hunter2":    "https://a.test/x?REDACTED",
		"https://a.test/x?%zz=a&n=1":  "https://a.test/x?%zz=REDACTED&n=1",
		"https://a.test/%zz?hunter2":  "(malformed URL)",
		"https://a.test/v2/r/blobs/d": "https://a.test/v2/r/blobs/d",
	} {
		equal(t, in, RedactURL(in), want)
	}
}

func TestMessage(t *testing.T) {
	long := strings.Repeat("é", messageLimit)
	for in, want := range map[string]string{
		"":                       "",
		" a\r\n\tb\x00\x1b[31m ": "a b[31m",
		`{"errors":[]}`:          `{"errors":[]}`,
		`{"errors":[{"code":"DENIED","message":"no"}]}`: "DENIED: no",
		long:         long[:messageLimit],
		"a" + long:   "a" + long[:messageLimit-2],
		"bad \xff x": "bad x",
	} {
		equal(t, clip(in), message([]byte(in)), want)
	}
}

func TestBlobURL(t *testing.T) {
	equal(t, "URL", BlobURL("https://ghcr.io/", "a/b", "sha256:00"), "https://ghcr.io/v2/a/b/blobs/sha256:00")
	for path, want := range map[string]string{
		"/v2/a/b/blobs/sha256:00": "a/b", "/v2/a/manifests/x": "a", "/v2/blobs/blobs/x": "blobs", "/v2/": "", "/v2/a/tags/list": "a", "/x/blobs/y": "",
		"/v2/a/referrers/sha256:00": "a", "/v2/blobs/x": "",
	} {
		equal(t, path, repository(path), want)
	}
}
