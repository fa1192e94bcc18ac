"""Addresses of the sites, under ``/sites/``."""

from django.urls import path

from fedportal.sites import views

app_name = "sites"
urlpatterns = [
    path("", views.SiteList.as_view(), name="list"),
    path("register/", views.SiteChoose.as_view(), name="create"),
    path("register/<slug:kind>/", views.SiteCreate.as_view(), name="create-with"),
    path("<slug:slug>/", views.SiteDetail.as_view(), name="detail"),
    path("<slug:slug>/connector/", views.SiteChoose.as_view(), name="connector"),
    path("<slug:slug>/datasets/<str:name>/", views.DatasetCopies.as_view(), name="copies"),
    path("<slug:slug>/key/", views.show_key, name="key"),
    path("<slug:slug>/handout/", views.show_handout, name="handout"),
    path("<slug:slug>/sign-in/", views.sign_in, name="sign-in"),
    path("<slug:slug>/reissue/", views.reissue, name="reissue"),
    path("<slug:slug>/edit/", views.SiteUpdate.as_view(), name="edit"),
    path("<slug:slug>/check/", views.request_check, name="check"),
    path("<slug:slug>/retire/", views.retire, name="retire"),
    path("<slug:slug>/reinstate/", views.reinstate, name="reinstate"),
]
