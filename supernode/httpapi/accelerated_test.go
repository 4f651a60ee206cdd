package httpapi

import (
	"net/http"
	"strings"
	"testing"
)

func TestAcceleratedImages(t *testing.T) {
	s := newServer(t, nil)
	want := `{"image":"r.test/app@` + string(blobA) + `","digest":"` + string(blobA) + `","index":"sha256:` + strings.Repeat("0c", 32) +
		`","key":"k","blobs":2,"bytes":3,"created_at":"2026-01-02T03:04:05Z","pushed":true,"push_error":"e"}`
	for method, path := range map[string]string{"GET": "/api/v1/accelerated", "DELETE": "/api/v1/accelerated/" + string(blobA)} {
		if got := s.want(http.StatusOK, "", method, path, ""); got != `{"accelerated":[`+want+"]}\n" {
			t.Errorf("%s %s: %s", method, path, got)
		}
	}
	s.want(http.StatusNotFound, "not_found", "DELETE", "/api/v1/accelerated/"+string(blobB), "")
}
