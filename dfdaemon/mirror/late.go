package mirror

import (
	"io"
	"net/http"
)

// lateHeader sends the status with the first bytes, so that content that cannot
// be had at all still gets an error status.
type lateHeader struct {
	rec    http.ResponseWriter
	status int
	begun  bool
}

func (l *lateHeader) begin() {
	if !l.begun {
		l.begun = true
		l.rec.WriteHeader(l.status)
	}
}

// Write sends b.
func (l *lateHeader) Write(b []byte) (int, error) {
	l.begin()
	return l.rec.Write(b)
}

// ReadFrom lets the connection take bytes straight from a file.
func (l *lateHeader) ReadFrom(r io.Reader) (int64, error) {
	l.begin()
	w := l.rec
	for {
		if rf, ok := w.(io.ReaderFrom); ok {
			return rf.ReadFrom(r)
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return io.Copy(struct{ io.Writer }{w}, r)
		}
		w = u.Unwrap()
	}
}
