package httpapi

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/damselfly-io/damselfly/supernode/preheat"
)

// maxBody bounds a request's body, in bytes.
const maxBody = 1 << 20

// decode reads the JSON body of r into v. With strict set, unknown fields are
// refused.
func decode(w http.ResponseWriter, r *http.Request, v any, strict bool) error {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
		// Web pages can send other types anywhere without being asked.
		return problem(http.StatusUnsupportedMediaType, "unsupported_media_type", "send JSON, with the header \"Content-Type: application/json\"")
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return decodeError(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return decodeError(err)
		}
		return problem(http.StatusBadRequest, "invalid_json", "there is something after the JSON document")
	}
	return nil
}

// decodeError says what is wrong with a body, without repeating its values:
// they may be secrets.
func decodeError(err error) error {
	var (
		large  *http.MaxBytesError
		bad    *preheat.InvalidError
		kind   *json.UnmarshalTypeError
		syntax *json.SyntaxError
	)
	switch {
	case errors.As(err, &large):
		return problem(http.StatusRequestEntityTooLarge, "too_large", "the body is larger than %d bytes", maxBody)
	case errors.As(err, &bad):
		return err
	case errors.As(err, &kind):
		return problem(http.StatusBadRequest, "invalid_request", "%s: want %s, not %s", kind.Field, kind.Type, strings.SplitN(kind.Value, " ", 2)[0])
	case errors.As(err, &syntax):
		return problem(http.StatusBadRequest, "invalid_json", "the body is not JSON: an error at byte %d", syntax.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return problem(http.StatusBadRequest, "invalid_json", "the body is empty or ends early: want a JSON document")
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return problem(http.StatusBadRequest, "unknown_field", "field %.100s is not known", name)
	}
	return problem(http.StatusBadRequest, "invalid_json", "the body cannot be read as JSON")
}
