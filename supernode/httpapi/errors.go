package httpapi

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/damselfly-io/damselfly/supernode/accelerate"
	"github.com/damselfly-io/damselfly/supernode/preheat"
)

// apiError is an error as clients see it.
type apiError struct {
	status  int
	code    string
	message string
}

// Error returns the message.
func (e *apiError) Error() string { return e.message }

func problem(status int, code, format string, args ...any) error {
	return &apiError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// errorBody is the JSON form of an error.
type errorBody struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// fail answers with err.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := describe(err)
	if e.status >= http.StatusInternalServerError {
		a.o.Log.Error("a request to the management API failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="damselfly"`)
	}
	var body errorBody
	body.Error.Code, body.Error.Message = e.code, e.message
	_ = reply(w, e.status, body) // strings always have a JSON form
}

// describe turns the errors of the packages below into answers.
func describe(err error) *apiError {
	var known *apiError
	var bad *preheat.InvalidError
	var status int
	var code string
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &bad):
		status, code = http.StatusBadRequest, "invalid_request"
	case errors.Is(err, preheat.ErrNotFound), errors.Is(err, accelerate.ErrNotFound):
		status, code = http.StatusNotFound, "not_found"
	case errors.Is(err, preheat.ErrNoPeers):
		status, code = http.StatusConflict, "no_peers"
	case errors.Is(err, preheat.ErrTooMany):
		status, code = http.StatusTooManyRequests, "too_many_jobs"
	case errors.Is(err, preheat.ErrStopping):
		status, code = http.StatusServiceUnavailable, "stopping"
	default:
		return &apiError{http.StatusInternalServerError, "internal", "the supernode could not do that; its log says why"}
	}
	return &apiError{status, code, err.Error()}
}
