package get

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A kill leaves the last checkpoint, which proves all that came before it.
func TestCheckpointsWhileWriting(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	p, err := openPart(file)
	if err != nil {
		t.Fatal(err)
	}
	const length = 3 * checkpointEvery
	none := func(n int64) { t.Errorf("%d bytes to check", n) }
	if err := p.resume(t.Context(), "task", length, none); err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for p.size < checkpointEvery+2<<20 {
		if _, err := p.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.f.Close(); err != nil { // as a kill does
		t.Fatal(err)
	}
	p, err = openPart(file)
	if err != nil {
		t.Fatal(err)
	}
	checked := int64(0)
	if err := p.resume(t.Context(), "task", length, func(n int64) { checked = n }); err != nil {
		t.Fatal(err)
	}
	if p.size != checkpointEvery || checked != checkpointEvery {
		t.Errorf("resumes at %d after checking %d", p.size, checked)
	}
	if st, err := p.f.Stat(); err != nil || st.Size() != p.size {
		t.Errorf("the rest is not cut off: %v, %v", st, err)
	}
	if err := p.discard(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A run that opened the part file before another run renamed it must not write
// into what is now FILE.
func TestLockNoticesARename(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	p, err := openPart(file)
	if err != nil {
		t.Fatal(err)
	}
	late, err := os.OpenFile(p.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.resume(t.Context(), "task", 0, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.lock(late); !errors.Is(err, errBusy) {
		t.Errorf("locked twice: %v", err)
	}
	if err := p.commit(); err != nil {
		t.Fatal(err)
	}
	if current, err := p.lock(late); err != nil || current {
		t.Errorf("takes FILE for the part file: %v, %v", current, err)
	}
	if err := late.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("https://user:secret-password@h/a/b.bin?sig=secret-signature#x", "Authorization: secret-token")
	f.Add("http://[::1]:8080/%2e%2e", "X: y")
	f.Fuzz(func(t *testing.T, url, header string) {
		req, err := (&flags{priority: "demand", headers: []string{header}}).request(url)
		if err != nil {
			return
		}
		if strings.ContainsRune(req.file, '/') || req.file == "" || req.file == "." || req.file == ".." {
			t.Errorf("file %q", req.file)
		}
		for _, h := range req.source.Headers {
			if strings.ContainsAny(h.Name+h.Value, "\r\n\x00") {
				t.Errorf("header %q", h)
			}
		}
	})
}
