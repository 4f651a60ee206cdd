package runtimetest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// The account that private registries of these tests let in.
const (
	user     = "puller"
	password = "correct-horse-battery"
	account  = user + ":" + password
)

// accountSecrets are the forms in which the account must not be found.
func accountSecrets() []string {
	return []string{password, base64.StdEncoding.EncodeToString([]byte(account))}
}

// tokenServer gives tokens to the account and lets only them read.
type tokenServer struct {
	realm string

	mu     sync.Mutex
	tokens map[string]bool // whether it is still good, by token
}

// guard makes a front ask for tokens of a new token server, which it runs at
// /token.
func guard(f *front) *tokenServer {
	s := &tokenServer{realm: f.URL + "/token", tokens: map[string]bool{}}
	f.admit = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			s.issue(w, r)
			return false
		}
		return s.admit(w, r)
	}
	return s
}

// issue answers a request for a token, in the ways of the distribution
// specification (GET) and of OAuth 2 (POST).
func (s *tokenServer) issue(w http.ResponseWriter, r *http.Request) {
	name, secret, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		name, secret = r.PostFormValue("username"), r.PostFormValue("password")
	}
	if name+":"+secret != account {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong account"}]}`, http.StatusUnauthorized)
		return
	}
	token := rand.Text() + rand.Text()
	s.mu.Lock()
	s.tokens[token] = true
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	// A client that has gone needs no token.
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

// admit lets requests with a good token pass.
func (s *tokenServer) admit(w http.ResponseWriter, r *http.Request) bool {
	token, given := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	good := s.tokens[token]
	s.mu.Unlock()
	if good {
		return true
	}
	challenge := fmt.Sprintf(`Bearer realm=%q,service="test"`, s.realm)
	if repo, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok {
		challenge += fmt.Sprintf(`,scope="repository:%s:pull"`, repo)
	} else if repo, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/"); ok {
		challenge += fmt.Sprintf(`,scope="repository:%s:pull"`, repo)
	}
	if given {
		challenge += `,error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"a token is needed"}]}`, http.StatusUnauthorized)
	return false
}

// issued returns all tokens so far.
func (s *tokenServer) issued() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.tokens))
}

// expire makes tokens useless.
func (s *tokenServer) expire(tokens []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, token := range tokens {
		s.tokens[token] = false
	}
}
